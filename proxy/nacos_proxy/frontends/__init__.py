"""The APIs for clients: one interface per folder. Shared files are here: access control, tokens, bodies, streams.

A front end reads a request, calls the agent, and writes the response.
Never here: deciding where an answer comes from.
"""

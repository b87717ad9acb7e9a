"""What clients speak: one interface per folder; the files here are the HTTP plumbing that they share.

A front end reads a request, asks the agent, and writes the response.
Never here: deciding where an answer comes from.
"""

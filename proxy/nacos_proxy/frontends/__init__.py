"""What clients speak: one interface per folder, and in this folder the HTTP code that they share.

A front end reads a request, asks the agent, and writes the response.
Never here: deciding where an answer comes from.
"""

"""What clients speak: one interface per folder; the files here are the HTTP plumbing that they share.

A front end reads a request, asks the agent, and writes the response. It never decides where an answer comes from.
"""

"""What clients speak. The folders hold one interface each; the files here are the HTTP plumbing that they share.

A front end reads a request, asks the agent, and writes the answer.
Never here: where an answer came from; a front end sees a cache result and writes headers from it.
"""

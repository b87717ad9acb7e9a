"""The Nacos HTTP API in its three dialects v1, v2 and v3, and what they share; the UDP push packets.

A dialect is a table of operations, read by the server role and the client role alike.
Never here: which server or dialect a call goes to (`upstream.nacos`).
"""

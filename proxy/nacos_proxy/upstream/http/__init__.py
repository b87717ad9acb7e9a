"""The HTTP transport to upstream servers: connections, exchanges, and the errors that exceptions become.

Never here: dialects and the choice of a server (`upstream.nacos`).
"""

"""The HTTP transport to upstream servers: connections, one exchange, and what its exceptions mean.

Never here: dialects and the choice of a server (`upstream.nacos`).
"""

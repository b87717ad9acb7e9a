"""The Nacos gRPC API: messages as bytes, and the rows that turn them into calls and results, as server and as client.

Never here: HTTP/2 (`wire.http2`), connections, sessions.
"""

"""Real Nacos and r-nacos over HTTP: the choice of server, dialect and token. `registry` shows how a call travels.

Never here: bytes (`wire.nacos`) and sockets (`upstream.http`).
"""

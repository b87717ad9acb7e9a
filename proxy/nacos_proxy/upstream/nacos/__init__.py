"""Real Nacos and r-nacos over HTTP: chooses a server, a dialect and a token. `registry` shows how a call travels.

Never here: bytes (`wire.nacos`) and sockets (`upstream.http`).
"""

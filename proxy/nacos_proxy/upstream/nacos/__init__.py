"""Real Nacos and r-nacos over HTTP: which server, which dialect, which token. `registry` shows how a call travels.

Never here: bytes (`wire.nacos`) and sockets (`upstream.http`).
"""

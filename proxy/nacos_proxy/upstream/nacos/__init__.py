"""Real Nacos and r-nacos over HTTP: which server, which dialect, which token; the pass-through of other requests.

Never here: bytes (`wire.nacos`) and sockets (`upstream.http`).
"""

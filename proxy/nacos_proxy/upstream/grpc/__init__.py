"""Push from Nacos 2.0 and later over gRPC, with the optional Rust SDK binding.

It reports that a service changed; the change itself is fetched over HTTP.
Never here: reads and writes.
"""

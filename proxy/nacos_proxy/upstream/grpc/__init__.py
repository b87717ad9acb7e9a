"""Push from Nacos 2.0 and later over gRPC, with the optional Rust SDK binding.

Push reports that a service changed; the poller then fetches the service over HTTP.
Never here: reads and writes.
"""

"""The registries, which hold the true state: `contract` defines one, `nacos` and `embedded` implement it.

A registry takes a call and returns its result. `http` and `grpc` connect `nacos` to its servers.
Never here: caching for readers; an upstream does not know that there is a cache.
"""

"""Registries: `contract` defines what a registry is; `nacos` and `embedded` are the two implementations.

A registry takes a call and returns its result. `nacos` reaches its servers through `http` and `grpc`; `proxy` follows
the events of an upper proxy.
Never here: caching for readers; an upstream does not know that there is a cache.
"""

"""Where the truth lives: `contract` says what a registry is; `nacos` and `embedded` are the two registries.

A registry takes a call and returns its result; `http` and `grpc` are how `nacos` reaches its servers.
Never here: caching for readers; an upstream does not know that there is a cache.
"""

"""Where the truth lives: the contract of a registry, and its implementations.

A registry takes a call and returns its result.
Never here: caching for readers; an upstream does not know that there is a cache.
"""

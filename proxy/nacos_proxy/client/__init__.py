"""The Python client of a running proxy, with the method names of the legacy `nacos.NacosClient`.

It imports only `wire` and `model`.
Never here: anything that runs in the proxy's own process.
"""

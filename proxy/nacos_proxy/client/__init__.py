"""The Python client of a running proxy, with the method names of the legacy `nacos.NacosClient`.

Never here: anything of the proxy's own process; it imports only `wire` and `model`.
"""

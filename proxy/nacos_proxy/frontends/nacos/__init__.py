"""The Nacos API: the naming calls; all other requests are passed through to the upstream.

Never here: rules of a dialect (`wire.nacos`).
"""

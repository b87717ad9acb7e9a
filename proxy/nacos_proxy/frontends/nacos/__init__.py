"""The drop-in Nacos API: naming from the dialects' tables, everything else passed through to the upstream.

Never here: rules of a dialect (`wire.nacos`).
"""

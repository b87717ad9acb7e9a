"""Lookups for load balancers and scrapers: one instance, or lists of them.

Never here: the formats (`wire.discovery`) and the load balancing (`catalog.load_balancing`).
"""

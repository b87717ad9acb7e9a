"""Lists and choices for load balancers and scrapers.

Never here: their formats (`wire.discovery`) and how an instance is chosen (`catalog.load_balancing`).
"""

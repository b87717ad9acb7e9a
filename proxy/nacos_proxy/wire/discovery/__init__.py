"""Formats that scrapers and load balancers read: Prometheus, nginx, HAProxy and plain lists.

Never here: which instances are chosen (`catalog.load_balancing`).
"""

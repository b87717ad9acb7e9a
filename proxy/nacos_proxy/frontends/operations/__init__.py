"""For operators: health, readiness, status, metrics, the status page.

Never here: counting. Each component counts its own events.
"""

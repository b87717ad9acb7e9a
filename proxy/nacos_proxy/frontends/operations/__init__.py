"""For operators: health, readiness, status, metrics, the status page.

Never here: the counting; each component counts for itself.
"""

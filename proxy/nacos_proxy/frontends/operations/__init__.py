"""For operators: health, readiness, status, metrics, the page.

Never here: the counting; each component counts for itself.
"""

"""For operators: health, readiness, status, metrics, the status page.

Never here: what the numbers are made of; each part counts for itself.
"""

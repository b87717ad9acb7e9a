"""The REST API: services, instances and heartbeats as JSON, with its documentation at `/docs`.

Never here: the JSON itself (`wire.rest`).
"""

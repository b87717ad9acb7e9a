"""Handles requests: read, query, fetch, send, write, patch, watch and commit have a file each; `Agent` joins them.

Only this package knows both the catalog and the upstream, and only it changes the catalog.
Never here: HTTP, settings, files.
"""

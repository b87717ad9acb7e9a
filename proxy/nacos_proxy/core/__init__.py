"""Handles requests: read, query, fetch, send, write, patch, watch and commit have a file each; `Agent` joins them.

`outage` and `reregistration` handle an upstream that is down or has lost instances.
Only this room knows both the catalog and the upstream, and only it changes the catalog.
Never here: HTTP, settings, files.
"""

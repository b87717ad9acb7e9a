"""What happens to a request, one file each: read, query, fetch, send, write, patch, watch, commit; `Agent` joins them.

Only this room knows both the catalog and the upstream, and only it changes the catalog.
Never here: HTTP, settings, files.
"""

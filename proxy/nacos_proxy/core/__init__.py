"""What happens to a request, one file each: read, query, fetch, send, write, patch, watch, commit; `Agent` joins them.

`outage` and `reregistration` handle an upstream that is down or has lost instances.
Only this room knows both the catalog and the upstream, and only it changes the catalog.
Never here: HTTP, settings, files.
"""

"""The walks of a request: read, fetch, write, watch, commit; reregistration and patches; `Agent` is their facade.

Only this room knows both the catalog and the upstream, and only it changes the catalog.
Never here: HTTP, settings, files.
"""

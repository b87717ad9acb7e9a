"""Repeated reads answered from prepared bytes, and the HTTP/1.1 connection that they arrive on.

Never here: deciding what is cacheable. A front end marks its response (`wire.http.Cacheable`).
"""

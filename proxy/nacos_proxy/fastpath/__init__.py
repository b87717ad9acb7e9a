"""Answers repeated reads from prepared bytes; with the HTTP/1.1 protocol that reads them.

Never here: deciding what is cacheable. A front end marks its response (`wire.http.Cacheable`).
"""

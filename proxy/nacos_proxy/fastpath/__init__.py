"""Repeated reads answered from prepared bytes, and the HTTP/1.1 connection that they arrive on.

Never here: deciding what may be repeated; a front end marks its answer as cacheable.
"""

"""Bytes to values and back, pure and in both roles: requests and replies of every protocol we speak.

`http` holds HTTP as values; the folders below hold one protocol family each.
Never here: sockets, state, or a decision about what to answer.
"""

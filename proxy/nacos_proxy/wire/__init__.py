"""Converts bytes to values and back, as client and as server, without side effects. Each folder is a protocol family.

Never here: sockets, state, or a decision about what to answer.
"""

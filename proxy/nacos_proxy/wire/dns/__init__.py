"""DNS: what a name asks for, and messages to and from bytes, with dnspython.

Never here: sockets, the time, random numbers. They are arguments.
"""

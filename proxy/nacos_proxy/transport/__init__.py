"""What the connections of clients and to servers share: TLS in front of one, HTTP/2 on one.

Never here: requests, their meaning, or who may send them.
"""

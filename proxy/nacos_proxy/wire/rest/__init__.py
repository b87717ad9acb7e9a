"""Our own API: its JSON, its parameters, its problem documents (RFC 9457) and Server-Sent Events.

Never here: routes and endpoints (`frontends.rest`).
"""

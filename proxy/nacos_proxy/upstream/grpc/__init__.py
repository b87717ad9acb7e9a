"""gRPC to servers of Nacos 2.0 and later, as a client: connections, sessions, and push of what is watched.

Never here: writes, and reads for clients; they travel over HTTP.
"""

"""The Nacos gRPC API for SDKs: connections, sessions, naming requests, the tunnel for everything else.

Never here: the bytes of messages (`wire.nacos.grpc`).
"""

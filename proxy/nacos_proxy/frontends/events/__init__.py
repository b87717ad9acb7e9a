"""Changes pushed to clients by event streams and long polls, and the quota of each client.

Never here: event ids and history (`catalog.hub`).
"""

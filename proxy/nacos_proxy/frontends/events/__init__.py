"""Changes pushed to clients: event streams and long polls, and how many one client may hold open.

Never here: event ids and history (`catalog.hub`).
"""

"""What runs beside requests: the poller, the state file, health checks, UDP push.

Each loop is supervised and started by `app.components`.
Never here: answers to requests.
"""

"""What this host knows: cached snapshots, freshness, pending writes, events, registrations, the circuit breaker.

Pure: the time and random numbers are arguments.
Never here: requests to the upstream, tasks, timers, encodings.
"""

"""What this host knows: cached snapshots, freshness, pending writes, events, registrations, the circuit breaker.

Also decisions on that state: polls, load balancing, health checks. Pure: time and random numbers are arguments.
Never here: asking the upstream, tasks, timers, encodings.
"""

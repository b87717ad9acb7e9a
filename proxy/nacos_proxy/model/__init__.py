"""Values that all rooms share (services, snapshots, calls, errors) and their rules. Immutable and pure.

Never here: anything that awaits, reads a clock, logs, or imports another room.
"""

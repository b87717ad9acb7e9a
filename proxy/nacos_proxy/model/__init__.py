"""Values: services, instances and snapshots; calls; what Nacos accepts; what a write means; errors.

Everything here is immutable and pure.
Never here: anything that awaits, reads a clock, logs, or imports another room.
"""

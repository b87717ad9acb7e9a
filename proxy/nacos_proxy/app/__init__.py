"""The program: settings, the one composition root (`components`), tenants, the process, logs.

Never here: behaviour of a part; this room makes the parts and connects them.
"""

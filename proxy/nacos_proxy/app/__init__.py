"""The program: settings, the composition root (`components`), tenants, the ASGI app, the process, logging.

Never here: the behaviour of a component.
"""

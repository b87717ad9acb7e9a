"""A registry in this process that behaves like a Nacos server, including instances that expire.

Never here: the file that its persistent services are written to (`background.persistence`).
"""

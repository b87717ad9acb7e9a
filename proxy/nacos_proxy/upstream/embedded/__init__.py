"""A registry inside this process: it behaves like a Nacos server, with beats that expire.

Never here: the file that its persistent services are written to (`background.persistence`).
"""

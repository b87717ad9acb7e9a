"""DNS for clients that look services up by name: UDP and TCP, answers from the cache, prepared answers.

Never here: what a name means, and the bytes of messages (`wire.dns`).
"""

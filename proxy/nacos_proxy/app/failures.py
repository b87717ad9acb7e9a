"""Why the proxy does not start. Apart, because the command line imports it for every command."""


class BadSettings(Exception):
    """Its text tells the operator what is wrong, where the value came from, and what is allowed."""


class CannotStart(Exception):
    """Its text tells the operator what is wrong and what to do."""

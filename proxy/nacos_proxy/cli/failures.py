"""How a command fails. Apart from the REST client, which `serve` and `--help` do not need."""

from __future__ import annotations

EXIT_CODES = "Exit codes: 0 done, 1 refused or not found, 2 wrong usage or settings, 3 no proxy answers."


class Unreached(Exception):
    """No proxy answered at the address."""


def reason_of(error: Exception) -> str:
    """Its text in brackets, for the end of a sentence; '' without one."""
    text = str(error).strip().rstrip(".: ")
    return f" ({text})" if text else ""


class ApiProblem(Exception):
    """The proxy answered with an error: what it said, and a hint."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    @property
    def temporary(self) -> bool:
        """Whether the same call may succeed later."""
        return self.status == 429 or self.status >= 500

"""How a client may have instances chosen for it. Apart from the choosing, because the command line needs only these."""

from __future__ import annotations

from typing import Literal, get_args

Strategy = Literal["weighted", "round_robin", "random", "least_recent", "hash"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
MAX_PICKED = 100  # instances in one answer

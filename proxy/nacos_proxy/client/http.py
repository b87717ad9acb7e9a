"""The httpx client with which a proxy is asked. Not for: the upstream (`registry.http`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from nacos_proxy.wire.http import CODED, PLAIN, coded


def plain_client(base_url: str, headers: Sequence[tuple[str, str]], **options: Any) -> httpx.Client:
    """Takes plain answers alone, and nothing from the environment; `options` are httpx's. Raises `httpx.InvalidURL`."""
    hooks = {"response": [_refuse_coded]}
    return httpx.Client(base_url=base_url, headers=[PLAIN, *headers], trust_env=False, event_hooks=hooks, **options)


def _refuse_coded(reply: httpx.Response) -> None:
    """httpx would decompress it without a bound."""
    if coding := coded(reply.headers.raw):
        raise httpx.DecodingError(CODED.format(coding))

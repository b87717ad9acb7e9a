"""The httpx client for calls to a proxy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from nacos_proxy.wire.compression import COMPRESSED_ANSWER, NO_COMPRESSION, content_codings


def plain_client(base_url: str, headers: Sequence[tuple[str, str]], **options: Any) -> httpx.Client:
    """An httpx client that ignores the environment and refuses compressed answers. Raises `httpx.InvalidURL`.

    `options` are passed to `httpx.Client`.
    """
    hooks = {"response": [_refuse_compressed]}
    return httpx.Client(
        base_url=base_url, headers=[NO_COMPRESSION, *headers], trust_env=False, event_hooks=hooks, **options
    )


def _refuse_compressed(reply: httpx.Response) -> None:
    """httpx would decompress such an answer without a limit."""
    if coding := content_codings(reply.headers.raw):
        raise httpx.DecodingError(COMPRESSED_ANSWER.format(coding))

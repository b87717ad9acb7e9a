"""A local caching discovery proxy for Nacos. Python services use its client: `from nacos_proxy import NacosClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nacos_proxy.client.client import NacosClient

__version__ = "0.2.0"

__all__ = ["NacosClient", "__version__"]


def __getattr__(name: str) -> object:
    """Imports the client on first use, because the proxy and the command line start faster without it."""
    if name == "NacosClient":
        from nacos_proxy.client.client import NacosClient

        return NacosClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

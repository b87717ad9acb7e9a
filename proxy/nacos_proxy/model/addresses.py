"""Addresses of instances as text. Apart from services, because the command line needs only these."""

from __future__ import annotations

import ipaddress
from functools import lru_cache


@lru_cache(maxsize=16_384)
def plain_ip(ip: str) -> str:
    """The canonical form of an IPv6 address (RFC 5952), without brackets. Any other text is returned unchanged.

    Clients register the same address as `2001:db8::7`, `[2001:db8::7]` (Spring) or `2001:DB8::7`. Servers treat each
    form as a separate instance and show it unchanged (tried with 2.5.1).
    """
    bare = ip[1:-1] if ip.startswith("[") and ip.endswith("]") else ip
    if ":" not in bare:
        return ip
    try:
        return str(ipaddress.IPv6Address(bare))
    except ValueError:
        return ip


def address_of(ip: str, port: int | str) -> str:
    """`ip:port`, with an IPv6 address in its canonical form and in brackets (RFC 3986 3.2.2)."""
    ip = plain_ip(ip)
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

"""Heartbeat times: how often a client beats, and when an instance without beats is unhealthy or deleted."""

from __future__ import annotations

from nacos_proxy.model.services import (
    Metadata,
)

DEFAULT_BEAT_INTERVAL = 5000  # ms


def millis(metadata: Metadata, name: str, default: int) -> int:
    """A `preserved.*` time in ms; the default where there is none that fits Java's long (nacos-http.md 5.6)."""
    text = metadata.get(name) or ""
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 18 else default


def beat_interval(metadata: Metadata, default: int = DEFAULT_BEAT_INTERVAL) -> int:
    return millis(metadata, "preserved.heart.beat.interval", default)


def beat_timeout(metadata: Metadata) -> int:
    return millis(metadata, "preserved.heart.beat.timeout", 15_000)


def delete_timeout(metadata: Metadata) -> int:
    return millis(metadata, "preserved.ip.delete.timeout", 30_000)

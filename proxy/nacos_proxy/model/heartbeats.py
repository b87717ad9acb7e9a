"""Heartbeat times in ms: how often a client beats, and when an instance without beats turns unhealthy or is deleted."""

from __future__ import annotations

from nacos_proxy.model.services import Metadata

DEFAULT_BEAT_INTERVAL = 5000  # ms


def _millis(metadata: Metadata, name: str, default: int) -> int:
    """A `preserved.*` time; the default unless it is a number that fits into Java's long (nacos-http.md 5.6)."""
    text = metadata.get(name) or ""
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 18 else default


def beat_interval(metadata: Metadata, default: int = DEFAULT_BEAT_INTERVAL) -> int:
    return _millis(metadata, "preserved.heart.beat.interval", default)


def beat_timeout(metadata: Metadata) -> int:
    return _millis(metadata, "preserved.heart.beat.timeout", 15_000)


def delete_timeout(metadata: Metadata) -> int:
    return _millis(metadata, "preserved.ip.delete.timeout", 30_000)

"""Heartbeat times in the metadata of an instance."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.registrations import Registrations
from nacos_proxy.model.calls import Register
from nacos_proxy.model.heartbeats import beat_interval, beat_timeout, delete_timeout
from tests.helpers.build import KEY, instance


def test_beat_interval_and_timeouts_come_from_the_metadata_or_are_nacoss_defaults() -> None:
    assert (beat_interval({}), beat_timeout({}), delete_timeout({})) == (5000, 15_000, 30_000)
    given = {
        "preserved.heart.beat.interval": "1000",
        "preserved.heart.beat.timeout": "3000",
        "preserved.ip.delete.timeout": "6000",
    }
    assert (beat_interval(given), beat_timeout(given), delete_timeout(given)) == (1000, 3000, 6000)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", " 1", "٣", "²", "9" * 19, "9" * 400, "9" * 5000])
def test_beat_interval_defaults_if_the_text_is_no_number(text: str) -> None:
    assert beat_interval({"preserved.heart.beat.interval": text}, 7) == 7


@given(st.text(max_size=30) | st.integers(0, 10**30).map(str))
def test_beat_times_never_break_the_registrations(text: str) -> None:
    """A time of 400 digits, too large for a float, once ended the poller."""
    metadata = dict.fromkeys(
        ("preserved.heart.beat.interval", "preserved.heart.beat.timeout", "preserved.ip.delete.timeout"), text
    )
    registrations = Registrations()
    registrations.record_write(Register(KEY, instance(metadata=metadata)), 100.0)
    registrations.expire(1e6)
    assert all(r.alive(100.0) in (True, False) and r.healthy(100.0) in (True, False) for r in registrations)
    orjson.dumps([beat_interval(metadata), beat_timeout(metadata), delete_timeout(metadata)])

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes

from nacos_proxy.wire.http2_frames import BURST, MAX_FRAME, RATE, SETTINGS, Excess, FrameGuard
from tests.helpers import frames

PING = frames.frame(frames.PING, 0, 0, b"12345678")


def guard(skip: int = 0) -> FrameGuard:
    made = FrameGuard(skip=skip, max_block=1000)
    made.look(b"", 100.0)
    return made


@pytest.mark.parametrize("size", [1, 3, 8, 9, 10, 26, 10_000])
def test_look_finds_the_frames_in_pieces_of_any_size(size: int) -> None:
    looked, data = guard(skip=24), b"p" * 24 + PING * 60 + frames.frame(frames.DATA, 0, 1, b"\xff" * 500) + PING * 60
    for start in range(0, len(data), size):
        looked.look(data[start : start + size], 100.0)
    looked.spend(BURST - 120)
    with pytest.raises(Excess):
        looked.spend(1)


def test_look_bounds_the_size_of_a_frame() -> None:
    guard().look(frames.frame(frames.DATA, 0, 1, bytes(MAX_FRAME)), 100.0)
    with pytest.raises(Excess, match="16385 bytes") as caught:
        guard().look(frames.frame(frames.DATA, 0, 1, bytes(MAX_FRAME + 1))[:9], 100.0)
    assert caught.value.code == ErrorCodes.FRAME_SIZE_ERROR


@pytest.mark.parametrize("kind", range(2, 12))
def test_look_ends_a_flood(kind: int) -> None:
    looked, flood = guard(), frames.frame(kind, 0, 1, b"")
    for _ in range(BURST // (SETTINGS if kind == frames.SETTINGS else 1)):
        looked.look(flood, 100.0)
    with pytest.raises(Excess) as caught:
        looked.look(flood, 100.0)
    assert caught.value.code == ErrorCodes.ENHANCE_YOUR_CALM


def test_look_gives_credits_for_time_up_to_the_burst() -> None:
    looked = guard()
    looked.look(PING * BURST, 100.0)
    looked.look(PING * int(RATE), 101.0)
    with pytest.raises(Excess):
        looked.look(PING, 101.0)
    looked = guard()
    looked.look(PING * BURST, 1_000_000.0)
    with pytest.raises(Excess):
        looked.look(PING, 1_000_000.0)


def test_earn_gives_credits_for_messages() -> None:
    looked = guard()
    looked.look(PING * BURST, 100.0)
    looked.earn(2)
    looked.look(PING * 2, 100.0)
    with pytest.raises(Excess):
        looked.look(PING, 100.0)


def test_look_bounds_a_header_block() -> None:
    looked = guard()
    looked.look(frames.frame(frames.HEADERS, 0, 1, bytes(600)), 100.0)
    looked.look(frames.frame(frames.CONTINUATION, 0, 1, bytes(400)), 100.0)
    with pytest.raises(Excess, match="header block"):
        looked.look(frames.frame(frames.CONTINUATION, 0, 1, bytes(1)), 100.0)


def test_look_accepts_the_pings_of_grpc_core() -> None:
    looked = guard()
    for second in range(10_000):
        looked.look(PING * 2, 100.0 + second)

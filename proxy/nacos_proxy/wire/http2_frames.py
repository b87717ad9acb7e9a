"""What the frames of one HTTP/2 connection may cost: their size, and how many of them carry nothing.

Looks at the heads of the frames before `h2` gets them: `h2` collects a frame of up to 16 MiB before it checks its size,
and does not count frames. The payload is never looked at.

A peer has `BURST` credits. Frames that carry no message cost credits; time and answers bring them back. So PING,
SETTINGS, RST_STREAM, WINDOW_UPDATE, PRIORITY, CONTINUATION, unknown and empty frames are free for a real client, and a
flood of them ends the connection (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316, CVE-2025-8671).
"""

from __future__ import annotations

from h2.errors import ErrorCodes

MAX_FRAME = 16_384  # bytes of payload: the default of SETTINGS_MAX_FRAME_SIZE, the least that a peer may send
BURST = 2_000  # credits
RATE = 100.0  # credits a second: grpc-core sends 24 PINGs in 20 s (nacos-grpc.md 1)
PER_MESSAGE = 4  # credits that a message sent to the peer brings
BYTES_PER_CREDIT = 2_048  # of messages sent: some clients confirm each frame of 16 KiB with two WINDOW_UPDATEs
RESET = 1  # credits for a request that is given up before its answer, beside the frame: 50 time-outs a second are fine
SETTINGS = 4  # credits: changes the window of each stream

_HEAD = 9
_HEADERS, _SETTINGS, _GOAWAY, _CONTINUATION = 1, 4, 7, 9


class Excess(Exception):
    """The peer went beyond a bound. The connection ends with `code`."""

    def __init__(self, code: ErrorCodes, text: str) -> None:
        super().__init__(text)
        self.code = code


class FrameGuard:
    """`skip`: bytes in front of the first frame (the client's preface). `max_block`: bytes of one header block."""

    __slots__ = ("_at", "_block", "_credits", "_head", "_max_block", "_skip", "goodbye")

    def __init__(self, *, skip: int, max_block: int) -> None:
        self.goodbye = False  # GOAWAY was among the frames
        self._skip = skip
        self._max_block = max_block
        self._head = b""  # an incomplete head
        self._block = 0  # bytes of the header block that is under way
        self._credits = float(BURST)
        self._at = 0.0

    def look(self, data: bytes, now: float) -> None:
        """Checks the frames that begin in `data`. `now` in seconds. Raises `Excess`."""
        self._credits = min(float(BURST), self._credits + (now - self._at) * RATE)
        self._at = now
        position = self._skip
        if self._head:
            data, self._head = self._head + data, b""
        end = len(data)
        while position + _HEAD <= end:
            length = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            if length > MAX_FRAME:
                raise Excess(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            kind = data[position + 3]
            if kind > _HEADERS:
                self.spend(SETTINGS if kind == _SETTINGS else 1)
            if kind == _GOAWAY:
                self.goodbye = True
            elif kind == _HEADERS:
                self._block = length
            elif kind == _CONTINUATION:
                self._block += length
                if self._block > self._max_block:
                    raise Excess(ErrorCodes.ENHANCE_YOUR_CALM, f"a header block of more than {self._max_block} bytes")
            position += _HEAD + length
        if position < end:
            self._head, self._skip = data[position:], 0
        else:
            self._skip = position - end

    def spend(self, credits: int) -> None:
        """Raises `Excess` if the peer has none left."""
        self._credits -= credits
        if self._credits < 0:
            raise Excess(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that carry no message")

    def earn(self, credits: int) -> None:
        self._credits = min(float(BURST), self._credits + credits)

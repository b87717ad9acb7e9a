"""`multipart/form-data` bodies with the boundary `x`, and what 2.5.1 and 3.0.3 make of each.

`tests/conformance/test_multipart.py` sends them to a real server, if one is configured.
"""

from __future__ import annotations

TYPE = "multipart/form-data; boundary=x"
END = b"--x--\r\n"


def part(name: str, value: str, more: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'.encode()


IP = part("ip", "10.0.0.1")

TAKEN = [
    IP + END,
    IP + b"--x--",
    b"what stands before\r\n" + IP + END + b"and behind",
    b"no line of its own" + IP + END,
    IP + part("port", "80", '; filename="a"') + END,
    IP + part("port", "80", '; filename=""') + END,
    IP + part("port", "80", "; filename*=UTF-8''a") + END,
    IP + part("port", "80").replace(b"form-data", b"attachment") + END,
    IP.replace(b"--x\r\n", b"--x\n") + END,
    IP + b"--x",
    IP + b"--x\r",
    IP + b"--x-",
    IP + b"--x \r\n" + END,
    IP + b"--xy\r\n" + part("port", "82")[5:] + END,
    IP + b"--x\r\nContent-Type: text/plain\r\n\r\nno name\r\n" + END,
    b"--x\r\ncontent-disposition:form-data;name=ip\r\nContent-Type: text/plain\r\n\r\n10.0.0.1\r\n" + END,
]
"""The parameter `ip` and no other."""

EMPTY = [b"", b"abc", b'{"serviceName":"a"}', b"--y\r\n"]
"""Without a delimiter: no parameters."""

CUT = [
    IP,
    IP[:-2],
    IP[:20],
    IP + b"--x\r\n" + END,
    IP + b"--x\r\n\r\nno headers\r\n" + END,
    b"--x\r\n" + IP.replace(b"\r\n", b"\n") + END,
    IP + part("port", "80").replace(b"\r\n", b"\n") + END,
]
"""Cut short, or no such body: 500 there, 400 here."""

"""The httpx client for calls to a proxy."""

from __future__ import annotations

import httpx
import pytest

from nacos_proxy.client.http import plain_client


def test_plain_client_asks_for_no_coding_and_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        coded = {"content-encoding": "gzip"} if request.url.path == "/coded" else {}
        return httpx.Response(200, headers=coded, stream=httpx.ByteStream(b"whole"))

    monkeypatch.setenv("HTTP_PROXY", "no URL")
    transport = httpx.MockTransport(answer)
    with plain_client("http://127.0.0.1:1", [("x-more", "1")], transport=transport) as client:
        assert client.get("/plain").content == b"whole"
        assert client.headers["x-more"] == "1"
        with pytest.raises(httpx.DecodingError, match="the answer is compressed"):
            client.get("/coded")

"""The reader of recorded gRPC conversations."""

from __future__ import annotations

from tests.helpers.grpc_recordings import FILES, GRPC, exchanges, streamed


def test_exchanges_and_streamed_read_every_payload_of_a_conversation() -> None:
    for file in FILES:
        text = (GRPC / f"{file}.jsonl").read_text("utf-8")
        assert text.count('"event": "payload"') in (0, 2 * len(exchanges(file)) + len(streamed(file)))


def test_exchanges_pair_each_request_with_its_own_answer() -> None:
    pairs = {(e.request.payload.type, e.answer.payload.type) for e in exchanges("nacos-2.5.1-java25")}
    assert ("ServiceQueryRequest", "QueryServiceResponse") in pairs
    assert len(pairs) == len({request for request, _ in pairs})


def test_exchanges_keep_a_body_that_is_no_json() -> None:
    cases = {e.request.case: e.request for e in exchanges("nacos-2.5.1-raw-cases")}
    assert cases["not json"].payload.body == b"{nonsense"
    assert not cases["not json"].is_object
    assert not cases["empty body"].is_object
    assert cases["register"].is_object


def test_streamed_tells_who_sent_what() -> None:
    first, second, *_ = streamed("nacos-2.5.1-raw-cases")
    assert (first.sender, str(first)) == ("client", "nacos-2.5.1-raw-cases: ConnectionSetupRequest")
    assert (second.sender, second.stream) == ("server", True)

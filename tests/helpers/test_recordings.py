"""The recordings and their helper."""

from __future__ import annotations

import pytest

from tests.helpers.recordings import FOLDER, comparable, load

FILES = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def test_recordings_are_the_files_that_the_page_lists() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    assert FILES == ["auth", "modify", "nacos-2.5.1", "nacos-3.0.3", "protection", "r-nacos-0.8.8", "v3-only"]
    assert [name for name in FILES if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", FILES)
def test_recordings_have_requests_and_replies_without_secrets(name: str) -> None:
    rows = load(name)
    assert len(rows) > 30
    for row in rows:
        assert row.path.startswith("/nacos/") and row.below.startswith("/v")
        assert 200 <= row.reply.status < 600
        token = row.query.get("accessToken") or row.form.get("accessToken") or row.headers.get("Authorization")
        assert token in (None, "TOKEN", "bad")


def test_row_now_ms_is_read_from_an_error_page() -> None:
    (page,) = [row for row in load("nacos-2.5.1") if row.case == "v1 unknown path"]
    assert page.is_error_page and page.now_ms == 1_795_519_064_251


def test_row_request_with_a_form_has_its_content_type() -> None:
    row = next(row for row in load("nacos-2.5.1") if row.form)
    assert row.request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert str(row) == f"nacos-2.5.1: {row.case}"


def test_recordings_compare_the_order_of_fields_but_not_of_metadata() -> None:
    assert comparable(b'{"a":1,"b":[2]}') != comparable(b'{"b":[2],"a":1}')
    assert comparable(b'{"metadata":{"a":"1","b":"2"}}') == comparable(b'{"metadata":{"b":"2","a":"1"}}')
    assert comparable(b"ok") == b"ok"

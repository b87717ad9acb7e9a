"""What people are shown holds no secret, however it is spelt."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.masking import MASK, is_secret, masked, shown_origin, shown_url
from tests.helpers.growth import grows_as_its_input

SECRET = "hunter2"


@pytest.mark.parametrize(
    "query",
    [
        f"accessToken={SECRET}",
        f"access%54oken={SECRET}",
        f"a=1&pass%77ord={SECRET}&b=2",
        f"PASSWORD={SECRET}",
        f'password=a"{SECRET}',
        f"password='{SECRET}'",
        f"password=a={SECRET}",
        f"access_token={SECRET}",
        f"newPassword={SECRET}",
        f"client-secret={SECRET}",
        f"x&&=&token={SECRET}",
        f"signature={SECRET}",
    ],
)
@pytest.mark.parametrize("line", ['1.2.3.4:5 - "GET /a?{} HTTP/1.1" 200', "cannot ask http://h:1/a?{}", "{}", "{}, so"])
def test_masked_hides_values_of_secret_parameters(query: str, line: str) -> None:
    shown = masked(line.format(query))
    assert SECRET not in shown and MASK in shown


def test_masked_keeps_the_rest_of_a_line() -> None:
    line = 'INFO  1.2.3.4:5 - "GET /nacos/v1/ns/instance/list?serviceName=G@@a&ip=::1&username=app HTTP/1.1"  200\tend'
    assert masked(line) == line
    said = "http://127.0.0.1:8848/nacos: G@@orders of a:80 is gone; see user@example.org"
    assert masked(said) == said


NAMES = st.sampled_from(["accessToken", "access_token", "password", "newPassword"])


@given(NAMES, st.text(min_size=1), st.data())
def test_masked_decodes_parameter_names_as_a_server_does(name: str, value: str, data: st.DataObject) -> None:
    """Each character of the name may be sent as %xx; the value is what a URL can hold."""
    spelt = "".join(f"%{ord(c):02x}" if data.draw(st.booleans()) else c for c in name)
    query = f"a=1&{spelt}={quote('<' + value + '>', safe='')}&b=2"
    assert dict(parse_qsl(query))[name] == f"<{value}>"
    shown = masked(f"/a?{query}")
    assert shown == f"/a?a=1&{spelt}={MASK}&b=2"


@given(st.dictionaries(st.sampled_from(["serviceName", "ip", "clusters", "key", "username"]), st.text()))
def test_masked_shows_what_is_not_secret(pairs: dict[str, str]) -> None:
    assert masked(f"/a?{urlencode(pairs)}") == f"/a?{urlencode(pairs)}"


@pytest.mark.parametrize("piece", ["a", "%41", "a=", "://", "://a"])
def test_masked_takes_linear_time(piece: str) -> None:
    assert grows_as_its_input(lambda size: masked(piece * size), 50_000)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://nacos:8848/nacos", "http://nacos:8848/nacos"),
        (f"http://app:{SECRET}@nacos:8848", f"http://{MASK}@nacos:8848"),
        (f"{SECRET}@nacos:8848", f"{MASK}@nacos:8848"),
        (f"app:{SECRET}@nacos", f"{MASK}@nacos"),
        (f"http://app:{SECRET}/x@nacos/a", f"http://{MASK}@nacos/a"),
        (f"http://app:{SECRET}?x@nacos/a", f"http://{MASK}@nacos/a"),
        (f"http://app:a@{SECRET}@nacos/a", f"http://{MASK}@nacos/a"),
        (f"https://addr/list?nofix=1&token={SECRET}", f"https://addr/list?nofix=1&token={MASK}"),
        (f"https://addr/list?X-Amz-Signature={SECRET}#{SECRET}", f"https://addr/list?X-Amz-Signature={MASK}"),
        ("embedded", "embedded"),
        ("", ""),
    ],
)
def test_shown_url_hides_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert shown_origin("10.0.0.1:8848/nacos") == "10.0.0.1:8848"
    assert SECRET not in shown_origin(url)


@pytest.mark.parametrize(
    ("name", "secret"),
    [("access%54oken", True), ("X-Api-Key", True), ("sk", True), ("key", False), ("weight", False), ("ask", False)],
)
def test_is_secret_goes_by_the_name(name: str, secret: bool) -> None:
    assert is_secret(name) is secret

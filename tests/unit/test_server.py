"""The whole program as an app, and what a start and a reload refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy import __version__
from proxy.parts import build
from proxy.server import App, banner, check_exposure, create_app, reload_safely, run, uvicorn_config
from proxy.serving import CannotStart
from proxy.settings import Settings, load
from tests.helpers.app import serving
from tests.helpers.clock import FakeClock

PLAIN: dict[str, Any] = {"disk": False, "udp_push": False, "push": "off"}
LIST = "/nacos/v1/ns/instance/list?serviceName=a"


def test_the_app_can_be_made_without_a_process() -> None:
    app = create_app(Settings(**PLAIN), FakeClock())
    assert isinstance(app, App)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "proxy.example"])
def test_a_start_that_others_could_reach_needs_a_token_or_a_word(host: str) -> None:
    with pytest.raises(CannotStart, match="--insecure"):
        check_exposure(Settings(**PLAIN, host=host))
    check_exposure(Settings(**PLAIN, host=host, insecure=True))
    check_exposure(Settings(**PLAIN, host=host, tokens="read:12345678"))


def test_a_start_with_an_upstream_that_is_no_address_says_so_and_leaves_the_port() -> None:
    flags = {"disk": False, "port": 0, "upstream": "ftp://x", "push": "off", "udp_push": False}
    with pytest.raises(CannotStart, match="neither http nor https"):
        run(load(flags, None, {}))


@pytest.mark.parametrize("fast", [True, False])
def test_a_connection_outlasts_the_pause_between_two_beats_and_between_two_lists(fast: bool) -> None:
    """A client that beats every 5 s on a connection that ends after 5 s finds it broken again and again."""
    app = App(build(Settings(**PLAIN, fast_path=fast), FakeClock()))
    assert uvicorn_config(app, app.parts.settings).timeout_keep_alive >= 2 * 10


async def test_a_reload_changes_who_may_ask_also_for_answers_from_memory(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read:first-token\n")
    async with serving(tokens_file=tokens) as proxy:
        old = {"Authorization": "Bearer first-token"}
        for _ in range(4):
            assert (await proxy.http.get(LIST, headers=old)).status_code == 200
        tokens.write_text("read:other-token\n")
        proxy.app.reload(Settings(**PLAIN, tokens_file=tokens))
        assert (await proxy.http.get(LIST, headers=old)).status_code == 403
        assert (await proxy.http.get(LIST, headers={"Authorization": "Bearer other-token"})).status_code == 200


def test_a_reload_that_would_open_a_locked_door_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read:first-token\n")
    loaded = load({**PLAIN, "tokens_file": str(tokens)}, None, {})
    app = App(build(loaded.settings, FakeClock()))
    tokens.write_text("# none\n")
    reload_safely(app, loaded, [])
    assert [token.secret for token in app.guard.policy.tokens] == ["first-token"]
    assert "not reloaded" in caplog.text


async def test_a_client_cannot_pass_for_others_to_get_round_the_bounds_of_one() -> None:
    async with serving(subscribers_per_client=1) as proxy:
        async with proxy.http.stream("GET", "/api/v1/events?service=a", headers={"X-Forwarded-For": "10.0.0.1"}) as one:
            assert one.status_code == 200
            other = await proxy.http.get("/api/v1/events?service=a", headers={"X-Forwarded-For": "10.0.0.2"})
            assert other.status_code == 429


def test_the_first_lines_say_what_runs_on_which_upstream_with_which_state(tmp_path: Path) -> None:
    alone = banner(Settings(state_dir=tmp_path)).splitlines()
    assert alone[0] == f"nacos-proxy {__version__}"
    assert alone[1].startswith("upstream: embedded registry, for development") and "--upstream" in alone[1]
    assert alone[2] == f"state: {tmp_path}"
    given = banner(Settings(upstream=("http://app:hush@10.0.0.1:8848", "http://10.0.0.2:8848/nacos"), disk=False))
    assert given.splitlines()[1:] == [
        "upstream: http://10.0.0.1:8848, http://10.0.0.2:8848",
        "state: not kept (disk = false)",
    ]
    assert banner(Settings(upstream=(), endpoint="http://names/list?token=hush")).splitlines()[1] == (
        "upstream: as http://names names it"
    )

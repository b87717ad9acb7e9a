"""Where settings come from, and the errors for invalid ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nacos_proxy.app.failures import BadSettings
from nacos_proxy.app.settings import OTHER_VARIABLES, PREFIX, Settings, TokenRight, load, misspelt_variables

NO_FILE = {"NACOS_PROXY_CONFIG": os.devnull}


def refused(flags: dict[str, Any], file: Path | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(BadSettings) as caught:
        load(flags, file, {**NO_FILE, **(environ or {})})
    return str(caught.value)


def written(directory: Path, text: str) -> Path:
    file = directory / "settings.toml"
    file.write_text(text)
    return file


def test_load_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = written(tmp_path, "port = 1\ncache_ttl = '1s'\npoll_interval_read = 7\n")
    environ = {"NACOS_PROXY_PORT": "2", "NACOS_PROXY_CACHE_TTL": "2s"}
    loaded = load({"port": "3"}, file, environ)
    s = loaded.settings
    assert (s.port, s.cache_ttl, s.poll_interval_read, s.poll_safety) == (3, 2.0, 7.0, 30.0)
    sources = {row.name: row.source for row in loaded.rows()}
    assert sources["port"] == "flag --port"
    assert sources["cache_ttl"] == "environment NACOS_PROXY_CACHE_TTL"
    assert sources["poll_interval_read"] == f"file {file}"
    assert sources["poll_safety"] == "default"


def test_load_takes_the_file_of_a_variable(tmp_path: Path) -> None:
    file = written(tmp_path, "port = 1234\n")
    assert load({}, None, {"NACOS_PROXY_CONFIG": str(file)}).settings.port == 1234


def test_loaded_reload_reads_the_file_again(tmp_path: Path) -> None:
    file = written(tmp_path, "log_level = 'info'\n")
    loaded = load({"port": 5}, file, {})
    written(tmp_path, "log_level = 'debug'\n")
    assert (loaded.reload().settings.log_level, loaded.reload().settings.port) == ("debug", 5)


def test_load_ignores_an_empty_variable() -> None:
    assert load({}, None, {"NACOS_PROXY_PORT": "", **NO_FILE}).settings.port == 8840


def test_load_ignores_the_port_variable_of_a_kubernetes_service() -> None:
    environ = {"NACOS_PROXY_PORT": "tcp://10.0.0.1:8840", **NO_FILE}
    assert load({}, None, environ).settings.port == 8840


def test_load_takes_lists_from_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "upstream = ['http://a:8848', 'http://b:8848']\nudp_push = false\nmax_body = '2MiB'\n")
    s = load({}, file, {}).settings
    assert (s.upstream, s.udp_push, s.max_body) == (("http://a:8848", "http://b:8848"), False, 2 << 20)


def test_bad_settings_names_value_source_and_what_is_allowed() -> None:
    text = refused({"port": "70000"}, None, {"NACOS_PROXY_PUSH": "maybe", "NACOS_PROXY_CACHE_TTL": "soon"})
    port, push, ttl = sorted(text.splitlines(), key=lambda line: ["port", "push", "cach"].index(line[:4]))
    assert port.startswith("port '70000' (flag --port): Input should be less than or equal to 65535")
    assert push.startswith("push 'maybe' (environment NACOS_PROXY_PUSH): Input should be 'auto', 'on' or 'off'")
    assert ttl.startswith("cache_ttl 'soon' (environment NACOS_PROXY_CACHE_TTL): write a duration like")


def test_load_refuses_an_unknown_key_of_the_file_with_a_hint(tmp_path: Path) -> None:
    assert "no setting 'cache_tll'; did you mean cache_ttl?" in refused({}, written(tmp_path, "cache_tll = 1"))
    assert "no setting 'zzz'; `nacos-proxy config` lists them" in refused({}, written(tmp_path, "zzz = 1"))
    assert "settings do not belong in a table" in refused({}, written(tmp_path, "[cache]\nttl = 1"))


def test_load_names_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused({}, tmp_path / "none.toml")
    assert "is not valid TOML" in refused({}, written(tmp_path, "port = "))


def test_load_takes_tokens_from_the_file_as_a_list_or_as_text(tmp_path: Path) -> None:
    for line in ("tokens = ['read:12345678', ' admin:87654321 ']", "tokens = 'read:12345678,admin:87654321'"):
        s = load({}, written(tmp_path, line), {}).settings
        assert s.read_tokens() == (TokenRight("12345678", "read"), TokenRight("87654321", "admin"))
    assert load({}, written(tmp_path, "tokens = []"), {}).settings.read_tokens() == ()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("password", ["hush-hush"], "valid string"),
        ("identity_value", ["hush-hush"], "valid string"),
        ("tokens", {"read": "hush-hush"}, "valid string"),
        ("tokens", ["read:hush-hush", 5], "each item of the list must be a string"),
        ("tokens", [["read:hush-hush"]], "each item of the list must be a string"),
        ("tokens", ["read:hush-hush,admin:hush-hush"], "an item of the list contains a comma"),
    ],
)
def test_bad_settings_quotes_no_secret(name: str, value: Any, why: str) -> None:
    text = refused({name: value})
    assert name in text and why in text
    assert "hush" not in text


def test_rows_and_repr_show_no_secret() -> None:
    given = {"username": "app", "password": "hush-hush", "tokens": ["admin:hush-hush"]}
    loaded = load(given, None, NO_FILE)
    assert "hush" not in repr(loaded.settings) + str(loaded.rows())
    assert loaded.settings.read_password() == "hush-hush"


def test_read_password_and_read_tokens_read_files(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hush\n")
    (tmp_path / "tokens").write_text("# comment\nread:12345678\n\n admin:87654321 \n")
    s = Settings(
        username="app", password_file=tmp_path / "password", tokens="write:abcdefgh", tokens_file=tmp_path / "tokens"
    )
    assert s.read_password() == "hush"
    assert s.read_tokens() == (
        TokenRight("abcdefgh", "write"), TokenRight("12345678", "read"), TokenRight("87654321", "admin"),
    )  # fmt: skip


def test_read_password_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"password_file: .*none cannot be read: No such file"):
        Settings(username="app", password_file=tmp_path / "none").read_password()


@pytest.mark.parametrize(
    ("mode", "taken"), [(0o600, True), (0o640, True), (0o644, True), (0o664, True), (0o646, False)]
)
def test_read_tokens_and_read_password_refuse_a_world_writable_file(tmp_path: Path, mode: int, taken: bool) -> None:
    """Who can write it could take any right. Reading is allowed: Kubernetes mounts secrets with mode 0644."""
    (tmp_path / "tokens").write_text("admin:abcdefgh")
    (tmp_path / "tokens").chmod(mode)
    settings = Settings(tokens_file=tmp_path / "tokens", username="a", password_file=tmp_path / "tokens")
    if taken:
        assert settings.read_tokens() == (TokenRight("abcdefgh", "admin"),)
        return
    for read in (settings.read_tokens, settings.read_password):
        with pytest.raises(BadSettings, match=r"_file: .*tokens can be written by every user of this host: run chmod"):
            read()


def test_load_refuses_a_world_writable_file(tmp_path: Path) -> None:
    file = written(tmp_path, "port = 1\n")
    file.chmod(0o666)
    assert refused({}, file) == (
        f"the configuration file {file} can be written by every user of this host: run chmod o-w on it"
    )


def test_read_tokens_refuses_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match=r"tokens_file: .*tokens is not a text file"):
        Settings(tokens_file=tmp_path / "tokens").read_tokens()


@pytest.mark.parametrize("token", ["12345678", "root:12345678", "read:short"])
def test_read_tokens_refuses_a_token_without_right_or_too_short(token: str) -> None:
    with pytest.raises(BadSettings, match="write an API token as right:token") as caught:
        Settings(tokens=token).read_tokens()
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"tls_key": "k.pem"}, "tls_key is set and tls_cert is not"),
        ({"tls_client_ca": "ca.pem"}, "tls_client_ca is set and tls_cert is not"),
        ({"password": "hush"}, "password is set and username is not"),
        ({"identity_value": "x"}, "identity_value is set and identity_key is not"),
        ({"username": "a", "password": "b", "password_file": "c"}, "password and password_file are both set"),
        ({"require_upstream": "true"}, "upstream is not set: set it to your Nacos"),
        ({"upstream": "embedded,http://a"}, "upstream contains servers and 'embedded'; choose one"),
        ({"upstream": ","}, "upstream is empty"),
        ({"webhook_secret": "hush"}, "webhook_secret is set and webhooks is not"),
        ({"webhook_secret_file": "k"}, "webhook_secret_file is set and webhooks is not"),
        (
            {"webhooks": "a http://b", "webhook_secret": "hush", "webhook_secret_file": "c"},
            "webhook_secret and webhook_secret_file are both set",
        ),
        ({"webhooks": "http://b/hush"}, "write a webhook as its services and its URL"),
        ({"auth": "client", "webhooks": "a http://b/hush"}, "webhooks are for auth = proxy"),
        ({"auth": "client", "services_dir": "/etc/x"}, "services_dir is for auth = proxy"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags: dict[str, Any], sentence: str) -> None:
    text = refused(flags)
    assert text.startswith(sentence)
    assert "hush" not in text


def test_misspelt_variables_warns_of_each() -> None:
    given = {"NACOS_PROXY_CACHE_TLL": "1s", "NACOS_PROXY_SERVICE_HOST": "10.0.0.1", "NACOS_PROXY_CACHE_TTL": "1s"}
    clients = {PREFIX + name: "x" for name in OTHER_VARIABLES}
    (sentence,) = misspelt_variables(given | clients | {"PATH": "/bin"})
    assert sentence == "NACOS_PROXY_CACHE_TLL is not a setting and has no effect; did you mean NACOS_PROXY_CACHE_TTL?"


def test_settings_all_have_a_description() -> None:
    undescribed = [name for name, field in Settings.model_fields.items() if not (field.description or "").endswith(".")]
    assert undescribed == []


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_load_refuses_a_removed_setting_with_what_to_do_instead(source: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"workers": "1"} if source == "flag" else {}
    environ = {"NACOS_PROXY_WORKERS": "4"} if source == "environment" else {}
    file = written(tmp_path, "workers = 4\n") if source == "file" else None
    text = refused(flags, file, environ)
    assert text.startswith("workers (")
    assert source in text
    assert "was removed" in text and "remove it" in text and "another proxy" in text


def test_an_upper_proxy_is_an_upstream_with_a_token_of_its_own(tmp_path: Path) -> None:
    token = written(tmp_path, "12345678\n")
    s = load({"upstream": "proxy+http://a,proxy+http://b:1", "upstream_token_file": str(token)}, None, NO_FILE).settings
    assert (s.of_proxy, s.upstream_urls, s.upstream_uds) == (True, ("http://a:8840", "http://b:1"), "")
    assert s.read_upstream_token() == "12345678"
    assert Settings(upstream="proxy+unix:///run/a.sock").upstream_uds == "/run/a.sock"  # type: ignore[arg-type]
    assert not Settings(upstream="http://a").of_proxy  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"upstream": "proxy+http://a,http://b"}, "choose one kind"),
        ({"upstream": "proxy+http://a", "endpoint": "http://b/list"}, "choose one"),
        ({"upstream": "http://a", "upstream_token": "12345678"}, "upstream_token is for an upper proxy"),
        (
            {"upstream": "proxy+http://a", "upstream_token": "12345678", "upstream_token_file": "x"},
            "both set; choose one",
        ),
    ],
)
def test_an_upper_proxy_is_refused_with_settings_that_do_not_fit(flags: dict[str, str], text: str) -> None:
    assert text in refused(flags)

"""Settings on the command line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from nacos_proxy.app.settings import ESSENTIAL, Settings, load
from nacos_proxy.cli.config import documentation, sections
from tests.unit.conftest import Run

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_documentation_is_docs_configuration_md(cli: Run) -> None:
    assert PAGE.read_text("utf-8") == documentation()
    assert cli("config", "--docs").output == documentation()


def test_sections_have_the_ten_essential_settings_first_and_each_setting_once() -> None:
    names = [name for section in sections().values() for name in section]
    assert names[:10] == list(ESSENTIAL)
    assert sorted(names) == sorted(Settings.model_fields)


@pytest.mark.parametrize("command", ["serve", "doctor", "config"])
def test_settings_command_shows_its_options_by_section(cli: Run, command: str) -> None:
    text = cli(command, "--help").output
    shown = re.findall(r"^  --(?:no-)?([a-z-]+)|^([A-Z][\w, ]+):$", text, re.MULTILINE)
    names = [title or option.replace("-", "_") for option, title in shown]
    wanted = [word for title, options in sections().items() for word in (title, *options)]
    assert names[: len(wanted)] == wanted
    assert {"config", "Options"} <= set(names[len(wanted) :])


def test_settings_options_shows_choices_and_no_path_of_this_user(cli: Run) -> None:
    text = cli("serve", "--help").output
    assert "[auto|on|off]" in text
    assert str(Path.home()) not in text


def test_config_shows_values_and_sources(cli: Run) -> None:
    shown = cli("config", "--cache-ttl", "3s", "--no-disk", NACOS_PROXY_POLL_SAFETY="1m").output.splitlines()
    assert [line.removeprefix("# ") for line in shown if line.startswith("# ")] == list(sections())
    lines = [line.partition(" = ") for line in shown if " = " in line]
    rows = {name.strip(): value.split(maxsplit=1) for name, _, value in lines}
    assert list(rows) == [name for names in sections().values() for name in names]
    assert rows["cache_ttl"] == ["3s", "flag --cache-ttl"]
    assert rows["disk"] == ["false", "flag --disk"]
    assert rows["poll_safety"] == ["1m", "environment NACOS_PROXY_POLL_SAFETY"]
    assert rows["port"] == ["8840", "default"]


def test_config_masks_secrets_in_every_form(cli: Run) -> None:
    for form in ((), ("--json",), ("--toml",)):
        text = cli("config", *form, "--username", "app", NACOS_PROXY_PASSWORD="hush-hush").output
        assert "hush" not in text
        assert "********" in text


def test_config_masks_the_login_in_a_url_in_every_form(cli: Run) -> None:
    flags = ("--upstream", "http://app:hush@a:8848,app:hu/sh@b", "--endpoint", "https://app:hush@c/list?sig=hush&x=1")
    for form in ((), ("--json",), ("--toml",)):
        text = cli("config", *form, *flags).output
        assert "hush" not in text and "hu/sh" not in text
        assert "http://********@a:8848,********@b" in text and "https://********@c/list?sig=********&x=1" in text
    file = cli("config", "--toml", *flags).output.splitlines()
    assert [line for line in file if line.startswith("upstream =")] == [], "what is masked is no value"


def test_config_masks_the_login_in_a_refused_url(cli: Run) -> None:
    for flags in (("--endpoint", "http://app:hu/sh@c"), ("--endpoint", "ftp://app:hush@c"), ("--endpoint", "http://")):
        refused = cli("config", *flags)
        assert refused.exit_code != 0 and "write a URL like" in refused.output
        assert "hu/sh" not in refused.output and "hush" not in refused.output


def test_config_json_has_values_and_sources(cli: Run) -> None:
    rows = json.loads(cli("config", "--json", "--upstream", "http://a,http://b").output)
    assert rows["upstream"] == {"value": "http://a,http://b", "source": "flag --upstream"}
    assert list(rows) == list(Settings.model_fields)


def test_config_toml_has_the_same_effect(cli: Run, tmp_path: Path) -> None:
    flags = ("--upstream", "http://a,http://b", "--cache-ttl", "90s", "--max-body", "2MiB", "--no-udp-push")
    more = ("--context-path", "/", "--cache-stale-if-error", "forever", "--uds", str(tmp_path / "s"))
    file = tmp_path / "config.toml"
    file.write_text(cli("config", "--toml", *flags, *more).output)
    given = load({}, file, {}).settings
    assert (given.upstream, given.cache_ttl, given.max_body) == (("http://a", "http://b"), 90.0, 2 << 20)
    assert (given.context_path, given.udp_push, given.uds) == ("", False, tmp_path / "s")
    assert cli("config", "--toml", "--config", str(file)).output == file.read_text()


def test_config_warns_of_a_misspelt_variable(cli: Run) -> None:
    done = cli("config", NACOS_PROXY_CACHE_TLL="1s")
    assert done.exit_code == 0
    assert "NACOS_PROXY_CACHE_TLL is not a setting and has no effect" in done.stderr


def test_config_finds_the_file_of_the_user(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "nacos-proxy").mkdir()
    (tmp_path / "nacos-proxy" / "config.toml").write_text("port = 1234\n")
    done = cli("config", "--json", XDG_CONFIG_HOME=str(tmp_path), NACOS_PROXY_CONFIG=None)
    assert json.loads(done.output)["port"]["value"] == "1234"
    assert json.loads(cli("config", "--json", NACOS_PROXY_CONFIG=os.devnull).output)["port"]["value"] == "8840"


def test_config_warns_of_broken_service_files(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("service = 1")
    shown = cli("config", "--services-dir", str(tmp_path))
    assert (shown.exit_code, shown.stderr) == (0, "nacos-proxy: a.toml: service is illegal, it must be a text.\n")
    missing = cli("config", "--services-dir", str(tmp_path / "none"))
    assert f"services_dir {tmp_path}/none cannot be read" in missing.stderr


def test_config_validate_accepts_what_serve_accepts(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    flags = ("--upstream", "http://127.0.0.1:1", "--username", "app", "--password-file", str(tmp_path / "password"))
    done = cli("config", "validate", *flags)
    assert (done.exit_code, done.stdout) == (
        0,
        f"the settings are valid: 3 set, {len(Settings.model_fields) - 3} by default\n",
    )


def test_config_validate_prints_each_problem_and_where_it_comes_from(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "a.toml").write_text("service = 1")
    (tmp_path / "bad.pem").write_text("nothing")
    (tmp_path / "tokens").write_text("read:short\n")
    file = tmp_path / "config.toml"
    file.write_text(
        f"""
        upstream = ["http://127.0.0.1:1"]
        username = "app"
        password_file = "{tmp_path}/none"
        tls_cert = "{tmp_path}/bad.pem"
        tokens_file = "{tmp_path}/tokens"
        services_dir = "{tmp_path}/services"
        dns = ["192.0.2.1:53"]
        """
    )
    done = cli("config", "validate", "--config", str(file))
    assert (done.exit_code, done.stdout) == (2, "")
    lines = [line.removeprefix("nacos-proxy: ") for line in done.stderr.splitlines()]
    begins = [
        f"password_file: {tmp_path}/none cannot be read: No such file or directory (file {file})",
        "tls_cert: cannot use the TLS certificate",
        "tokens: write an API token as right:token",
        "dns = 192.0.2.1 can be reached from other hosts",
        f"{tmp_path}/services/a.toml: service is illegal",
    ]
    assert len(lines) == len(begins)
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins


def test_config_validate_refuses_what_serve_refuses(cli: Run, tmp_path: Path) -> None:
    for flags, said in (
        (("--host", "0.0.0.0"), "host: 0.0.0.0 can be reached from other hosts: set an API token"),
        (("--port", "70000"), "port '70000' (flag --port)"),
        (("--services-dir", str(tmp_path / "none")), "services_dir"),
        (
            ("--webhooks", "orders http://127.0.0.1/x", "--webhook-secret-file", str(tmp_path / "none")),
            "webhook_secret_file",
        ),
    ):
        done = cli("config", "validate", *flags)
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr

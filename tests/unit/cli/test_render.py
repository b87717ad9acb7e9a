"""`nacos-proxy render` against a running proxy: once, as a service, and while the proxy is away."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.helpers.live import Process, ProxyProcess, free_port
from tests.unit.conftest import Run

LIST = "{% for i in service('%s') %}{{ i.address }} {% endfor %}."


def template(directory: Path, service: str, name: str = "t.j2") -> Path:
    path = directory / name
    path.write_text(LIST.replace("%s", service))
    return path


def appending(directory: Path, *, unless: str = "") -> str:
    """A command that adds a line to `ran`; it fails while the file `unless` exists."""
    guard = f"[ ! -e {directory}/{unless} ] && " if unless else ""
    return f"sh -c '{guard}echo x >> {directory}/ran'"


def ran(directory: Path) -> int:
    path = directory / "ran"
    return len(path.read_text().split()) if path.exists() else 0


def rendering(server: str, *arguments: str) -> Process:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    program = [sys.executable, "-m", "nacos_proxy", "render", "--wait", "20ms"]
    return Process([*program, *arguments], env={**environ, "NACOS_PROXY_SERVER": server})


# once


def test_render_once_writes_a_file_and_runs_its_command_if_the_text_changed(ask: Run, tmp_path: Path) -> None:
    ask("register", "once", "10.0.0.1:80")
    spec = f"{template(tmp_path, 'once')}:{tmp_path}/out:{appending(tmp_path)}"
    for _ in range(2):
        done = ask("render", spec, "--once")
        assert (done.exit_code, (tmp_path / "out").read_text(), ran(tmp_path)) == (0, "10.0.0.1:80 .", 1)
    assert done.output == ""
    ask("register", "once", "10.0.0.2:80")
    assert ask("render", spec, "--once").stderr == f"nacos-proxy: wrote {tmp_path}/out\n"
    assert ran(tmp_path) == 2


def test_render_once_repeats_a_command_that_failed(ask: Run, tmp_path: Path) -> None:
    spec = f"{template(tmp_path, 'unknown-1')}:{tmp_path}/out:{appending(tmp_path, unless='fail')}"
    (tmp_path / "fail").touch()
    done = ask("render", spec, "--once")
    assert (done.exit_code, "exit code 1" in done.stderr, (tmp_path / "out").exists()) == (1, True, True)
    (tmp_path / "fail").unlink()
    assert (ask("render", spec, "--once").exit_code, ran(tmp_path)) == (0, 1)


def test_render_once_runs_one_command_for_several_files(ask: Run, tmp_path: Path) -> None:
    page = template(tmp_path, "unknown-2")
    specs = [f"{page}:{tmp_path}/{name}:{appending(tmp_path)}" for name in ("a", "b")]
    assert (ask("render", *specs, "--once").exit_code, ran(tmp_path)) == (0, 1)


def test_render_check_gets_the_new_file_and_may_refuse_it(ask: Run, tmp_path: Path) -> None:
    ask("register", "checked", "10.0.0.1:80")
    out = tmp_path / "out"
    out.write_text("before")
    spec = f"{template(tmp_path, 'checked')}:{out}:{appending(tmp_path)}"
    refused = ask("render", spec, "--once", "--check", "grep -q nowhere {}")
    assert (refused.exit_code, out.read_text(), ran(tmp_path)) == (1, "before", 0)
    assert "the check refuses the new text: grep -q nowhere " in refused.stderr
    assert ask("render", spec, "--once", "--check", "grep -q 10.0.0.1:80 {}").exit_code == 0
    assert (out.read_text(), ran(tmp_path)) == ("10.0.0.1:80 .", 1)


def test_render_dry_prints_and_writes_nothing(ask: Run, tmp_path: Path) -> None:
    ask("register", "dry", "10.0.0.1:80")
    done = ask("render", f"nginx@dry:{tmp_path}/out:{appending(tmp_path)}", "--dry")
    assert (done.exit_code, done.stderr) == (0, f"==> {tmp_path}/out\n")
    assert "    server 10.0.0.1:80 weight=1;\n" in done.stdout
    assert os.listdir(tmp_path) == []


def test_render_chooses_instances_by_selector(ask: Run, tmp_path: Path) -> None:
    ask("register", "zoned", "10.0.0.1:80", "--metadata", "zone=a")
    ask("register", "zoned", "10.0.0.2:80", "--metadata", "zone=b")
    (tmp_path / "t").write_text(
        "{% for s in ('zone=b', '') %}{{ service('zoned', selector=s) | caddy }},{% endfor %}"
        "{{ service('zoned', prefer='zone=b') | caddy }}"
    )
    assert ask("render", f"{tmp_path}/t:out", "--dry").stdout == "10.0.0.2:80,10.0.0.1:80 10.0.0.2:80,10.0.0.2:80"
    assert ask("render", f"{tmp_path}/t:out", "--dry", "-l", "zone=a").stdout.split(",")[1] == "10.0.0.1:80"


def test_render_keeps_a_full_list_unless_allow_empty(ask: Run, tmp_path: Path) -> None:
    ask("register", "leaving", "10.0.0.1:80")
    spec, out = f"{template(tmp_path, 'leaving')}:{tmp_path}/out", tmp_path / "out"
    ask("render", spec, "--once")
    ask("deregister", "leaving", "10.0.0.1:80")
    done = ask("render", spec, "--once")
    assert (done.exit_code, out.read_text()) == (0, "10.0.0.1:80 .")
    assert done.stderr == (
        f"nacos-proxy: nothing usable is left of public/DEFAULT_GROUP@@leaving; {out} keeps its last list. "
        "--allow-empty empties it.\n"
    )
    assert (ask("render", spec, "--once", "--allow-empty").exit_code, out.read_text()) == (0, ".")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nginx:out"], "name its services"),
        (["nowhere.j2:out"], "nowhere.j2 cannot be read"),
        (["nginx@a:/nowhere/out"], "the directory /nowhere does not exist"),
        (["nginx@a:out", "hosts@a:./out"], "two templates write the same file"),
        (["nginx@a:out", "--wait", "2s:1s"], "shorter than the first"),
        (["nginx@a:out", "--check", ""], "the command is empty"),
        ([], "Missing argument"),
    ],
)
def test_render_exits_with_2_on_wrong_usage(ask: Run, arguments: list[str], message: str) -> None:
    done = ask("render", *arguments, "--once")
    assert (done.exit_code, message in done.stderr) == (2, True)


def test_render_exits_with_1_if_the_proxy_or_the_template_refuses(ask: Run, tmp_path: Path) -> None:
    bad = ask("render", f"nginx@a@@b@@c!:{tmp_path}/out", "--once")
    assert (bad.exit_code, "is illegal" in bad.stderr) == (1, True)
    assert ask("render", f"nginx@a@@b@@c!:{tmp_path}/out").exit_code == 1
    (tmp_path / "t").write_text("{{ service('unknown-3')[0].ip }}")
    undefined = ask("render", f"{tmp_path}/t:{tmp_path}/out", "--once")
    assert (undefined.exit_code, f"{tmp_path}/t:1: " in undefined.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_render_once_exits_with_3_if_no_proxy_answers_and_keeps_the_file(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before")
    done = cli("render", f"nginx@a:{tmp_path}/out", "--once", NACOS_PROXY_SERVER=f"127.0.0.1:{free_port()}")
    assert (done.exit_code, (tmp_path / "out").read_text()) == (3, "before")


# as a service


def test_render_follows_several_templates_until_a_signal(ask: Run, running: ProxyProcess, tmp_path: Path) -> None:
    specs = [
        f"{template(tmp_path, name, name)}:{tmp_path}/{name}.out:{appending(tmp_path)}" for name in ("f-one", "f-two")
    ]
    ask("register", "f-one", "10.0.0.1:80")
    with rendering(running.url, *specs) as render:
        render.wait_for(re.compile(r"wrote .*f-two\.out"))
        ask("register", "f-two", "10.0.0.2:80")
        render.wait_for(re.compile(r"wrote .*f-two\.out"), since=2)
        assert (tmp_path / "f-two.out").read_text() == "10.0.0.2:80 ."
        (tmp_path / "f-one").write_text("{{")
        render.signal(signal.SIGHUP)
        render.wait_for(re.compile("The template before stays in use"))
        (tmp_path / "f-one").write_text("new {{ service('f-one') | caddy }}")
        render.signal(signal.SIGHUP)
        render.wait_for(re.compile(r"wrote .*f-one\.out"), since=3)
        assert render.terminate() == 0
    assert (tmp_path / "f-one.out").read_text() == "new 10.0.0.1:80"


def test_render_outlives_a_proxy_that_is_away_and_forgets(cli: Run, tmp_path: Path) -> None:
    """The embedded registry forgets ephemeral instances at a restart."""
    port, out = free_port(), tmp_path / "out"
    out.write_text("10.0.0.9:80 .")
    with rendering(f"127.0.0.1:{port}", f"{template(tmp_path, 'back')}:{out}") as render:
        render.wait_for(re.compile(r"no proxy answers .* The files stay as they are\. Trying again\."))
        with ProxyProcess("--port", str(port), "--empty-list-confirm", "50ms") as proxy:
            render.wait_for(re.compile(r"nothing usable is left of .*; .*out stays as it is"))
            cli("register", "back", "10.0.0.1:80", NACOS_PROXY_SERVER=proxy.url)
            render.wait_for(re.compile("wrote "))
            assert out.read_text() == "10.0.0.1:80 ."
            proxy.terminate()
            render.wait_for(re.compile("the event stream ended. The files|no proxy answers"), since=2)
            proxy.start()
            render.wait_for(re.compile(r"nothing usable is left of .*; .*out keeps its last list"))
            assert (render.terminate(), out.read_text()) == (0, "10.0.0.1:80 .")
    assert render.log.count("Trying again") == 2

"""The documentation agrees with the code: the names in it exist, everything is documented, its examples run."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from nacos_proxy.app import settings
from nacos_proxy.app.settings import Settings, tomllib
from nacos_proxy.cli.config import documentation
from nacos_proxy.frontends.operations.metrics import METRICS
from nacos_proxy.model import errors
from tests.helpers.grpc_recordings import FILES, exchanges
from tests.helpers.live import Process, ProxyProcess
from tests.helpers.pages import Block, Reader, matches
from tests.helpers.pages import blocks as blocks_of
from tests.helpers.recordings import FOLDER as RECORDINGS
from tests.helpers.recordings import load

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxy" / "nacos_proxy"
ROOMS = "|".join(path.parent.name for path in sorted(PACKAGE.glob("*/__init__.py")))
README = ROOT / "README.md"
CLIENTS = ROOT / "docs" / "clients.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OWN_HEADERS = ("Cache-Status", "Age", "ETag", "Nacos-Proxy-Answer", "Nacos-Proxy-Index")
# Pages below docs/ whose blocks a test runs in order, each in a directory of its own.
READ = ("cli", "migration", "troubleshooting", "tutorial", "upgrade")

# Lines of README.md and docs/clients.md that are not run, and why.
NOT_RUN = {
    "make run": "creates an environment",
    "make test": "runs this test",
    "nacos-proxy serve --no-disk": "runs until it is stopped; the process is tested in tests/e2e/test_process.py",
    "nacos-proxy serve --upstream http://10.0.0.1:8848": "needs the reader's server",
    "nacos-proxy doctor --upstream http://10.0.0.1:8848": "needs the reader's server",
    "nacos-proxy register --managed --check-http http://127.0.0.1:8080/health legacy 127.0.0.1:8080 -- "
    "./legacy-server": ("needs the reader's program; tests/e2e/test_cli.py has one"),
}
# Lines that run until they are interrupted, and what they print first.
ENDLESS = {
    "curl -N 'http://127.0.0.1:8840/api/v1/events?service=orders'": "event: snapshot",
    "nacos-proxy watch carts": "carts",
    "nacos-proxy beat carts 10.0.0.1:8080 --every 5": "sending heartbeats for",
}


@cache
def text_of(path: Path) -> str:
    return path.read_text("utf-8")


@cache
def all_pages() -> str:
    return "\n".join(text_of(path) for path in PAGES)


# named


def test_configuration_page_equals_config_docs() -> None:
    assert text_of(ROOT / "docs" / "configuration.md") == documentation()


def test_reliability_page_names_only_existing_settings() -> None:
    page = text_of(ROOT / "docs" / "reliability.md")
    column = [row.split("|")[2] for row in page.splitlines() if row.startswith("| ") and row.count("|") == 4]
    named = {name for cell in column for name in re.findall(r"`(\w+)`", cell)}
    assert named <= Settings.model_fields.keys()


def test_docs_name_only_existing_flags_and_variables() -> None:
    flags = {
        name
        for path in PAGES
        if path.name != "configuration.md"
        for name in re.findall(r"NACOS_PROXY_([A-Z_]+[A-Z])", text_of(path))
    }
    others = {"SERVER", "SERVER_CA", "SERVER_CERT", "TOKEN", "CONFIG", "TEST_RNACOS", "TEST_REQUIRE_RNACOS"}
    others |= {"TEST_REQUIRE_SDKS", "TEST_SEED", "TEST_KILLS"}
    others |= {"SERVICE", "GROUP", "NAMESPACE", "EVENT", "EVENT_ID"}  # that `watch --exec` sets
    assert {name for name in flags if name.lower() not in Settings.model_fields} - others == set()


@pytest.mark.parametrize("metric", METRICS)
def test_operations_page_explains_every_metric(metric: str) -> None:
    assert f"`{metric}`" in text_of(ROOT / "docs" / "operations.md")


def test_docs_name_only_existing_metrics(scraped: str) -> None:
    named = set(re.findall(r"nacos_proxy_[a-z_]+[a-z]", all_pages()))
    exposed = set(re.findall(r"^# TYPE (\w+)", scraped, re.MULTILINE)) | set(METRICS)
    assert named - exposed == set()


def test_operations_page_explains_every_exposed_metric(scraped: str) -> None:
    page = text_of(ROOT / "docs" / "operations.md")
    exposed = {name for name in re.findall(r"^# TYPE (\w+)", scraped, re.MULTILINE) if name.startswith("nacos_proxy_")}
    assert {name for name in exposed if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("header", OWN_HEADERS)
def test_docs_explain_every_header(header: str) -> None:
    assert f"`{header}" in all_pages()


def test_docs_explain_every_error() -> None:
    classes = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ProxyError) and value is not errors.ProxyError
    ]
    page = text_of(ROOT / "docs" / "operations.md")
    assert [name for name in classes if f"`{name}`" not in page] == []


def test_docs_quote_only_existing_log_lines_and_errors() -> None:
    """Looks in one module for all parts of a line between the dots, which stand for variable text."""
    code = [" ".join(text_of(path).replace('"\n', "").replace(' "', "").split()) for path in PACKAGE.rglob("*.py")]
    lines = re.findall(r"(?:log|error): `([^`]+)`", all_pages())
    assert len(lines) > 20
    assert [line for line in lines if not any(map(partial(has_parts, line), code))] == []


def has_parts(line: str, code: str) -> bool:
    parts = [part.strip() for part in line.split("…") if part.strip()]
    return all(part in code for part in parts)


def test_docs_name_every_route(openapi: dict[str, Any]) -> None:
    page = re.sub(r"\{ip\}:\{port\}", "{address}", text_of(CLIENTS) + text_of(ROOT / "docs" / "operations.md"))
    missing = [path for path in openapi["paths"] if f"{path}`" not in page and f"{path}?" not in page]
    assert missing == []


# linked


def test_site_builds_strictly_and_loads_nothing_from_other_servers(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="make docs installs it")
    site = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(site, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=150)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    pages = [path.read_text("utf-8") for path in tmp_path.rglob("*.html")]
    loaded = [url for text in pages for url in re.findall(r'(?:src|<link[^>]* href)="(https?://[^"]+)"', text)]
    assert len(pages) > 50 and loaded == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_links_have_existing_targets(path: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(text_of(path))]
    local = [target for target in targets if target and not target.startswith(("http://", "https://"))]
    assert [target for target in local if not (path.parent / target).exists()] == []


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_links_to_headings_have_existing_targets(path: Path) -> None:
    links = [link for link in LINK.findall(text_of(path)) if "#" in link and not link.startswith("http")]
    parts = [(link, *link.split("#", 1)) for link in links]
    lost = [link for link, page, name in parts if name not in anchors((path.parent / page) if page else path)]
    assert lost == []


REPLACED = set(re.findall(r"\((\d{4}-[\w-]+\.md)\).*replaced by", text_of(ROOT / "docs/decisions/README.md")))


# A superseded decision may name files that no longer exist.
@pytest.mark.parametrize(
    "path", [path for path in PAGES if path.name not in REPLACED], ids=lambda path: str(path.relative_to(ROOT))
)
def test_docs_name_only_existing_files(path: Path) -> None:
    named = re.findall(r"`((?:tests|proxy|deploy|loadtest|docs)/[\w./-]*\w)/?`", text_of(path))
    below = re.findall(rf"`((?:{ROOMS})/[\w./-]*)`", text_of(path))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing + [name for name in below if not (PACKAGE / name).exists()] == []


# cited

SOURCES = sorted(path for folder in ("proxy", "tests", "loadtest") for path in (ROOT / folder).rglob("*.py"))
PROTOCOLS = ("nacos-http.md", "nacos-grpc.md")
CITATION = re.compile(r"(nacos-(?:http|grpc)\.md),? ((?:(?:facts? )?\d+(?:\.\d+)?(?:, | to | and )?)+)")
RECORDING = re.compile(r'recordings? ((?:"[^"]+"(?:, | and )?)+)')


@cache
def code_of(path: Path) -> str:
    """A module on one line without comment marks, because a citation may span two lines."""
    return " ".join(re.sub(r"^\s*#", "", text_of(path), flags=re.MULTILINE).split())


def cited(protocol: str) -> Iterator[tuple[Path, str]]:
    """Each section (`5.5`) and fact (`fact 12`) of the protocol page that the code and the other pages cite."""
    for path in (*SOURCES, *(page for page in PAGES if page.name != protocol)):
        for page, places in CITATION.findall(code_of(path)):
            facts = False
            for word, number in re.findall(r"(facts? )?(\d+(?:\.\d+)?)", places) if page == protocol else ():
                facts = facts or bool(word)
                yield path, f"fact {number}" if facts else number


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cited_protocol_sections_exist(protocol: str) -> None:
    page = text_of(ROOT / "docs" / "protocol" / protocol)
    there = set(re.findall(r"^##? (\d+(?:\.\d+)?)[. ]", page, re.MULTILINE))
    there |= {f"fact {number}" for number in re.findall(r"^- \*\*Fact (\d+)\.", page, re.MULTILINE)}
    found = list(cited(protocol))
    assert len(found) > 10
    assert [f"{path.relative_to(ROOT)}: {place}" for path, place in found if place not in there] == []


def test_cited_recorded_cases_exist() -> None:
    rows = (row for file in sorted(RECORDINGS.glob("*.jsonl")) for row in load(file.stem))
    raw = (exchange.request for file in FILES for exchange in exchanges(file))
    cases = "\n".join(row.case for row in (*rows, *raw))
    cited = [name for path in SOURCES for names in RECORDING.findall(code_of(path)) for name in names.split('"')[1::2]]
    assert cited
    assert [name for name in cited if name.strip("… ") not in cases] == []


# run


@pytest.fixture(scope="module")
def proxy() -> Iterator[ProxyProcess]:
    with ProxyProcess() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def scraped(proxy: ProxyProcess) -> str:
    return _get(proxy, "/metrics").text


@pytest.fixture(scope="module")
def openapi(proxy: ProxyProcess) -> dict[str, Any]:
    found: dict[str, Any] = _get(proxy, "/openapi.json").json()
    return found


def _get(proxy: ProxyProcess, path: str) -> Any:
    import httpx

    return httpx.get(proxy.url + path, trust_env=False).raise_for_status()


def blocks(language: str) -> list[Block]:
    """The blocks of README.md and docs/clients.md that are run."""
    return [block for block in examples() if block.language == language and "not run" not in block.comments]


@cache
def examples() -> list[Block]:
    return [*blocks_of(README), *blocks_of(CLIENTS)]


def commands(block: Block) -> list[str]:
    """The lines of a `sh` block, continuation lines joined, comments removed."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [" ".join(line.partition("  #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


def all_commands() -> list[str]:
    return [command for block in blocks("sh") for command in commands(block)]


def environment(proxy: ProxyProcess) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    return {**clean, "PATH": path, "NACOS_PROXY_SERVER": proxy.url, "NACOS_PROXY_CONFIG": os.devnull, "TERM": "dumb"}


def test_readme_shell_commands_run(proxy: ProxyProcess) -> None:
    """Runs them in order against one proxy, as a newcomer would. A `text` block is the output of the one before."""
    assert (NOT_RUN.keys() | ENDLESS.keys()) - set(all_commands()) == set()
    outputs = {str(before): block.text for before, block in pairwise(examples()) if block.language == "text"}
    with ExitStack() as terminals:
        for block in blocks("sh"):
            printed = "".join(run(proxy, command, terminals) for command in commands(block) if command not in NOT_RUN)
            assert matches(outputs.get(str(block), "…"), printed), f"{block} prints\n{printed}"


def run(proxy: ProxyProcess, command: str, terminals: ExitStack) -> str:
    """What a command prints. One that runs on and on does so in a terminal of its own: the next ones may need it."""
    here = command.replace("127.0.0.1:8840", f"127.0.0.1:{proxy.port}")
    if command in ENDLESS:
        process = terminals.enter_context(Process(shlex.split(here), env=environment(proxy)))
        process.wait_for(re.compile(re.escape(ENDLESS[command])))
        return ""
    here = here.replace("curl ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(here, shell=True, env=environment(proxy), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{here}\n{done.stdout}{done.stderr}"
    return done.stdout.replace(f"127.0.0.1:{proxy.port}", "127.0.0.1:8840")


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_readme_python_runs(proxy: ProxyProcess, block: Block) -> None:
    here = block.text.replace("127.0.0.1:8840", f"127.0.0.1:{proxy.port}")
    done = subprocess.run(
        [sys.executable, "-c", here], env=environment(proxy), capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "10.0.0.5" in done.stdout


def test_readme_lists_the_commands_of_the_program() -> None:
    from nacos_proxy.cli.main import main

    shown = CliRunner().invoke(main, ["--help"]).output
    named = set(re.findall(r"^nacos-proxy (\w+)", "\n".join(all_commands()), re.MULTILINE))
    assert {name for name in named if f"\n  {name} " not in shown} == set()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", READ)
def test_pages_run_as_a_reader_types_them(name: str, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        assert reader.read(ROOT / "docs" / f"{name}.md") > 0


# checked: no block without a test


@cache
def constants_of_recipe_tests() -> list[set[object]]:
    """The constants in each test that takes blocks from a recipe: among them are its page and its title."""
    trees = [ast.parse(text_of(path)) for path in SOURCES if "helpers.recipes import block" in text_of(path)]
    return [{node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} for tree in trees]


def parse_commands(text: str) -> None:
    """Parses the options of each `nacos-proxy` command and checks its settings, without running it."""
    from nacos_proxy.cli.config import SettingsCommand
    from nacos_proxy.cli.main import main

    for line in text.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "nacos-proxy", f"{line!r} is not run by any test"
        with main.make_context("nacos-proxy", words) as group:
            name, command, rest = main.resolve_command(group, words)
            assert command is not None
            with command.make_context(name, rest, parent=group) as context:
                if isinstance(command, SettingsCommand):
                    given = {name: value for name, value in context.params.items() if value is not None}
                    flags = {name: given[name] for name in given.keys() & Settings.model_fields.keys()}
                    settings.load(flags, Path(os.devnull), {})


def parse_toml(text: str, path: Path) -> None:
    """Parses a block; if it is a configuration file, checks its settings."""
    if tomllib.loads(text).keys() & Settings.model_fields.keys():
        path.write_text(text)
        settings.load({}, path, {})


PARSERS: dict[str, Callable[[str], object]] = {
    "ini": lambda text: configparser.ConfigParser(strict=False, interpolation=None).read_string(text),
    "json": json.loads,
    "sh": parse_commands,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}


def check(block: Block, path: Path) -> None:
    """Raises if nothing runs the block, and it is not parsed, and does not say why not."""
    if "not run" in block.comments:
        assert len(block.comments["not run"].split()) > 2, "give the reason"
    elif block.page in (README, CLIENTS):
        assert block.language in ("sh", "python", "text"), "the tests of this page run sh and python"
    elif block.page.parent.name == "docs" and block.page.stem in READ:
        return
    elif block.title and any({block.page.stem, block.title} <= found for found in constants_of_recipe_tests()):
        return
    elif block.language == "toml":
        parse_toml(block.text, path)
    else:
        assert block.language in PARSERS, "nothing runs or parses it: see tests/helpers/pages.py"
        PARSERS[block.language](block.text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_have_no_block_without_a_check(path: Path, tmp_path: Path) -> None:
    failed: list[str] = []
    for block in blocks_of(path):
        try:
            check(block, tmp_path / "block.toml")
        except (Exception, click.ClickException) as error:
            failed.append(f"{block}: {error}")
    assert failed == []

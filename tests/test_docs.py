"""The documentation agrees with the code: the names in it exist, everything is documented, its examples run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nacos_proxy.app.settings import Settings
from nacos_proxy.cli.config import documentation
from nacos_proxy.frontends.operations.metrics import METRICS
from nacos_proxy.model import errors
from tests.helpers.grpc_recordings import FILES, exchanges
from tests.helpers.live import Process, ProxyProcess
from tests.helpers.recordings import FOLDER as RECORDINGS
from tests.helpers.recordings import load

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxy" / "nacos_proxy"
ROOMS = "|".join(path.parent.name for path in sorted(PACKAGE.glob("*/__init__.py")))
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OWN_HEADERS = ("Cache-Status", "Age", "ETag", "Nacos-Proxy-Answer", "Nacos-Proxy-Index")

# Lines of README.md that are not run, and why.
NOT_RUN = {
    "make run": "creates an environment",
    "make test": "runs this test",
    "make install": "creates an environment",
    ".venv/bin/nacos-proxy serve": "runs until it is stopped; the process is tested in tests/e2e/test_process.py",
    ".venv/bin/nacos-proxy serve --upstream http://10.0.0.1:8848": "needs the reader's server",
    ".venv/bin/nacos-proxy doctor --upstream http://10.0.0.1:8848": "needs the reader's server",
    "nacos-proxy register --managed --check-http http://127.0.0.1:8080/health legacy 127.0.0.1:8080 -- "
    "./legacy-server": ("needs the reader's program; tests/e2e/test_cli.py has one"),
}
# Lines that run until they are interrupted, and what they print first.
ENDLESS = {
    "curl -N 'http://127.0.0.1:8840/api/v1/events?service=orders'": "event: snapshot",
    "nacos-proxy watch carts": "carts",
    "nacos-proxy beat carts 10.0.0.1:8080 --every 5": "next beat in 5 s",
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


def test_operations_page_quotes_only_existing_log_lines() -> None:
    """Compares each part between the dots, which stand for variable text."""
    code = "\n".join(text_of(path) for path in sorted(PACKAGE.rglob("*.py")))
    lines = re.findall(r"log: `([^`]+)`", text_of(ROOT / "docs" / "operations.md"))
    parts = [part.strip() for line in lines for part in line.split("…") if part.strip()]
    assert len(lines) > 5
    assert [part for part in parts if part not in code] == []


def test_docs_name_every_route(openapi: dict[str, Any]) -> None:
    page = re.sub(r"\{ip\}:\{port\}", "{address}", text_of(README) + text_of(ROOT / "docs" / "operations.md"))
    missing = [path for path in openapi["paths"] if f"{path}`" not in page and f"{path}?" not in page]
    assert missing == []


# linked


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


def blocks(language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(text_of(README)) if kind == language]


def commands() -> list[str]:
    """The lines of the `sh` blocks, continuation lines joined, comments removed."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.partition("  #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


def environment(proxy: ProxyProcess) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    return {**clean, "PATH": path, "NACOS_PROXY_SERVER": proxy.url, "NACOS_PROXY_CONFIG": os.devnull, "TERM": "dumb"}


def test_readme_shell_commands_run(proxy: ProxyProcess) -> None:
    """Runs them in order against one proxy, as a newcomer would."""
    unknown = (NOT_RUN.keys() | ENDLESS.keys()) - set(commands())
    assert unknown == set()
    for command in commands():
        if command in NOT_RUN:
            continue
        here = command.replace("127.0.0.1:8840", f"127.0.0.1:{proxy.port}")
        if command in ENDLESS:
            with Process(shlex.split(here), env=environment(proxy)) as process:
                process.wait_for(re.compile(re.escape(ENDLESS[command])))
            continue
        here = here.replace("curl ", "curl -sS --fail-with-body ", 1)
        done = subprocess.run(here, shell=True, env=environment(proxy), capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, f"{here}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("block", blocks("python"))
def test_readme_python_runs(proxy: ProxyProcess, block: str) -> None:
    here = block.replace("127.0.0.1:8840", f"127.0.0.1:{proxy.port}")
    done = subprocess.run(
        [sys.executable, "-c", here], env=environment(proxy), capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "10.0.0.5" in done.stdout


def test_readme_lists_the_commands_of_the_program() -> None:
    from nacos_proxy.cli.main import main

    shown = CliRunner().invoke(main, ["--help"]).output
    named = set(re.findall(r"^(?:\.venv/bin/)?nacos-proxy (\w+)", "\n".join(commands()), re.MULTILINE))
    assert {name for name in named if f"\n  {name} " not in shown} == set()

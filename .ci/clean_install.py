"""Installs the wheel as a user does, into an environment of its own, and starts the proxy there.

The environment of developers is editable and holds more packages, so it cannot show that the wheel lacks a file or a
dependency. Prints what the installation takes; fails if it takes more than MAX_MB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "proxy")]

from nacos_proxy import __version__  # noqa: E402
from tests.helpers.live import ProxyProcess  # noqa: E402

FOLDER = ROOT / "build" / "clean_install"
PACKAGE = Path("proxy", "nacos_proxy")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
MAX_MB = 60  # docs/dependencies.md says what takes it
PAGES = ("/readyz", "/docs", "/ui")  # each needs files that are not Python, or packages that nothing else imports


def run(*command: str | Path) -> str:
    return subprocess.run(command, cwd=FOLDER, check=True, stdout=subprocess.PIPE, text=True).stdout


def build() -> Path:
    run(*PIP, "wheel", "--no-deps", "--wheel-dir", FOLDER, ROOT)
    (wheel,) = FOLDER.glob("*.whl")
    return wheel


def missing_files(wheel: Path) -> set[str]:
    """The files of the package that the wheel lacks."""
    files = (path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    with zipfile.ZipFile(wheel) as packed:
        return {path.relative_to(ROOT / PACKAGE.parent).as_posix() for path in files} - {*packed.namelist()}


def serve(program: Path) -> None:
    """Starts the installed proxy and reads its pages."""
    with ProxyProcess("--no-grpc", env={"PYTHONPATH": ""}, command=(str(program), "serve")) as proxy:
        for page in PAGES:
            with urllib.request.urlopen(proxy.url + page, timeout=10) as answer:
                assert answer.read(), page


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    wheel = build()
    if missing := missing_files(wheel):
        sys.exit(f"the wheel lacks {', '.join(sorted(missing))}")
    environment = FOLDER / "environment"
    venv.create(environment)
    program = environment / "bin" / "nacos-proxy"
    run(*PIP, "--python", environment, "install", wheel)
    assert run(program, "--version").split()[-1] == __version__
    serve(program)
    packages = len([*environment.glob("lib/python*/site-packages/*.dist-info")])
    size = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
    print(f"{packages} packages, {size:.0f} MB")
    if size > MAX_MB:
        sys.exit(f"an installation may take {MAX_MB} MB")


if __name__ == "__main__":
    main()

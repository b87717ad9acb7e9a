"""What the site has beyond docs/: the pages and charts of the repository that docs/ links to; and stars in `nav`.

The Markdown stays as it is read in a checkout, where links lead out of docs/. Here each target gets a place on the
site, and links to it are rewritten.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
CHARTS = "loadtest/results"
# Places on the site by places in the repository.
OUTSIDE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
OUTSIDE |= {f"{CHARTS}/{path.name}": f"charts/{path.name}" for path in (ROOT / CHARTS).glob("*.svg")}

_LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[)#])")
_CELL = re.compile(r"<td.*?</td>", re.DOTALL)
_TITLE = re.compile(r"^(```\w*[ \t]+title=)([^\s\"]+)[ \t]*$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> None:
    docs = Path(config.docs_dir)
    config.nav = _expanded(config.nav, docs, {str(name) for name in _names(config.nav)})


def _names(nav: Any) -> list[Any]:
    if isinstance(nav, dict):
        return [name for value in nav.values() for name in _names(value)]
    return [name for item in nav for name in _names(item)] if isinstance(nav, list) else [nav]


def _expanded(nav: Any, docs: Path, named: set[str]) -> Any:
    if isinstance(nav, dict):
        return {title: _expanded(value, docs, named) for title, value in nav.items()}
    if not isinstance(nav, list):
        return nav
    items: list[Any] = []
    for item in nav:
        if isinstance(item, str) and item.endswith("*"):
            pages = sorted(str(path.relative_to(docs)) for path in docs.glob(f"{item}.md"))
            items += [page for page in pages if page not in named]
        else:
            items.append(_expanded(item, docs, named))
    return items


def on_files(files: Files, config: MkDocsConfig) -> None:
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    here = page.file.src_uri
    source = next((source for source, place in OUTSIDE.items() if place == here), f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        place = OUTSIDE.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return _TITLE.sub(r'\1"\2"', _LINK.sub(moved, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """In the code of a table, GitHub wants a bar escaped, and Python-Markdown shows the backslash."""
    return _CELL.sub(lambda cell: cell[0].replace(r"\|", "|"), html)

"""axe-core, which finds what makes a page hard to use without eyes or a mouse.

`.ci/run` installs it into build/axe: a package for Python has the script; the package itself is not used.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.helpers.browser import Browser

INSTALLED = Path(__file__).parents[2] / "build" / "axe" / "axe_playwright_python" / "axe.min.js"
_RUN = """
return axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.flatMap(rule =>
    rule.nodes.map(node => rule.id + ': ' + node.html.slice(0, 200) + ' ' + node.failureSummary)))
"""


@cache
def _script() -> str:
    if not INSTALLED.exists():
        pytest.skip("no axe-core here; .ci/run installs it")
    return INSTALLED.read_text("utf-8")


def findings(browser: Browser) -> list[str]:
    """What axe-core finds on the page as it is now. Skips the test if there is no axe-core."""
    found: list[str] = browser.run(f"{_script()};{_RUN}")
    return found

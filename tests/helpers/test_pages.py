"""The helper that reads and runs pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.pages import Reader, blocks, matches


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_blocks_have_language_title_and_the_comments_above(tmp_path: Path) -> None:
    text = "a\n\n<!-- not run: needs root -->\n```sh\nls\n```\n\n```ini title=a.conf\n[x]\n```\n<!-- ctrl-c: one -->\n"
    found = [(b.language, b.title, b.text, b.comments) for b in blocks(page(tmp_path, text))]
    assert found == [
        ("sh", "", "ls\n", {"not run": "needs root"}),
        ("ini", "a.conf", "[x]\n", {}),
        ("", "", "", {"ctrl-c": "one"}),
    ]


@pytest.mark.parametrize("text", ["a\n\n    ls\n", "```sh\nls\n", "```sh {x}\nls\n```\n"])
def test_blocks_refuses_code_that_would_not_be_tested(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:\d"):
        blocks(page(tmp_path, text))


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb\n", "a  \nb", True),
        ("a … c", "a b c", True),
        ("a … c", "a\nc", False),
        ("a\n…\nc", "a\nb\nb\nc", True),
        ("a\n…\nc", "a\nc", True),
        ("a\n…", "a\nb\nc", True),
        ("a\n…", "b\na", False),
        ("a.c", "abc", False),
        ("…", "", True),
    ],
)
def test_matches_takes_dots_for_the_rest_of_a_line_or_for_lines(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_reader_runs_commands_terminals_and_files(tmp_path: Path) -> None:
    text = """
```toml title=a.toml
port = 8840
```

```sh
cat a.toml
```

```text
port = 8840
```

<!-- terminal: one -->
```sh
tail -f a.toml
```

```text
port = 8840
```
"""
    with Reader(tmp_path) as reader:
        assert reader.read(page(tmp_path, text)) == 2
    assert "8840" not in (tmp_path / "a.toml").read_text()


@pytest.mark.parametrize(
    "text", ["```sh\necho a\n```\n\n```text\nb\n```\n", "```sh\nfalse\n```\n", "```text\na\n```\n"]
)
def test_reader_fails_at_a_block_that_differs(tmp_path: Path, text: str) -> None:
    with Reader(tmp_path) as reader, pytest.raises(AssertionError, match=r"page\.md:1"):
        reader.read(page(tmp_path, text))


def test_reader_repeats_a_block_until_its_output_is_as_shown_and_interrupts_terminals(tmp_path: Path) -> None:
    text = """
<!-- soon -->
```sh
echo >> count; wc -l < count
```

```text
3
```

<!-- terminal: one -->
```sh
tail -f count
```

<!-- ctrl-c: one -->
"""
    with Reader(tmp_path) as reader:
        assert reader.read(page(tmp_path, text)) == 2

"""Documents that quote the program: every message in docs/troubleshooting.md is one that the code has; links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
# What JAX and Kubernetes say, options and names of metrics.
OTHERS = {"RESOURCE_EXHAUSTED", "libtpu", "reward", "parse_rate", "group_zero", "gap_max"}


def spoken() -> list[str]:
    """Every string of the package and the launcher, the places of f-strings left blank."""
    found = []
    for file in [*ROOT.glob("grm_jax/**/*.py"), *ROOT.glob("launch/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
                ]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted(page: str) -> list[str]:
    """The texts in backticks in the first column of a table."""
    first = [
        row.split("|")[1]
        for row in page.splitlines()
        if row.startswith("| ") and not row.startswith("| you see")
    ]
    return [
        text for column in first for text in re.findall(r"`([^`]+)`", column) if text not in OTHERS
    ]


def test_every_quoted_message_is_one_that_the_code_has():
    messages = quoted((ROOT / "docs/troubleshooting.md").read_text())
    assert len(messages) > 35
    strings = spoken()
    for message in messages:
        pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
        assert any(pattern.search(text) for text in strings), f"nobody says: {message}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_leads_to_every_page_of_docs():
    links = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= links

"""What the documents name exists: symbols of the paper map, verbs, files and commands of the README."""

import ast
import re
from pathlib import Path

import pytest

from magi.cli.main import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    page.name: page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
ROWS = re.findall(
    r"^\|[^|]*\|[^|]*\| `([^`]*)` \| `([^`]*)` \|$", (ROOT / "docs/paper_map.md").read_text(encoding="utf-8"), re.M
)


def names(path: Path) -> set[str]:
    """Functions, classes, methods, module constants and attributes that a file defines."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            found |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
            found |= {part.attr for part in ast.walk(target) if isinstance(part, ast.Attribute)}
    return found


def test_paper_map_has_rows() -> None:
    assert len(ROWS) > 30


@pytest.mark.parametrize(("file", "symbol"), ROWS)
def test_paper_map_names_what_exists(file: str, symbol: str) -> None:
    assert symbol in names(ROOT / file)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_verbs(page: str) -> None:
    for line in re.findall(r"^(?:\$ )?magi ([^\n]*)", PAGES[page], re.M):
        assert any(f"{line} ".startswith(f"{verb.name} ") for verb in VERBS), line


def test_every_verb_is_in_the_table_of_commands() -> None:
    named = set(re.findall(r"^\| `magi ([^`]*)` \|", PAGES["cli.md"], re.M))
    assert all(any(f"{row} ".startswith(f"{verb.name} ") for row in named) for verb in VERBS)
    assert all(any(f"{row} ".startswith(f"{verb.name} ") for verb in VERBS) for row in named)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[page]):
        assert (folder / target).exists(), target


def test_readme_is_short() -> None:
    """One page that a newcomer reads to its end; everything else has a page of its own."""
    assert len(README.splitlines()) <= 150


def test_readme_says_what_it_must() -> None:
    for phrase in (
        "make demo",
        "make test",
        "2501.12389",
        "not the authors' code",
        "MAGI-1",
        "Apache-2.0",
        "Python 3.11",
    ):
        assert phrase in README, phrase

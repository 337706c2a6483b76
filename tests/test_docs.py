"""What the documentation says in figures, held against the code."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

from trebi_gym.commands.cli import COMMANDS
from trebi_gym.datasets.recipes import RECIPES

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_table_of_named_data_sets_says_what_the_recipes_say(name):
    recipe = RECIPES[name]
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", (DOCS / "datasets.md").read_text(), re.MULTILINE)
    cells = [cell.strip(" `") for cell in row.strip("|").split("|")]
    assert cells[1] == recipe.env_id
    assert [float(cell) for cell in cells[2:5]] == [
        recipe.episode_length,
        recipe.maximum_budget,
        recipe.discounted_maximum,
    ]
    assert float(cells[5]) == pytest.approx(recipe.budget_factor, abs=5e-5)
    assert cells[6] == recipe.preset


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    entries = set(re.findall(r": (\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.MULTILINE))
    assert entries == {path.name for path in DOCS.glob("*.md")}


def blocks(language):
    """Every code block of every page and of the README, with its page's name."""
    for path in (*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"):
        for text in re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL):
            yield path.name, text


def test_every_option_of_every_command_in_the_documentation_exists():
    seen = 0
    for page, text in blocks("bash"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["trebi"]:
                continue
            known = inspect.signature(COMMANDS[words[1]]).parameters
            options = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
            assert options <= set(known), f"{page}: {line}"
            seen += 1
    assert seen > 20


def test_every_python_block_in_the_documentation_can_be_parsed():
    found = list(blocks("python"))
    assert len(found) > 8
    for page, text in found:
        compile(text, page, "exec")


def test_every_test_that_the_documentation_names_exists():
    named = set(re.findall(r"`(test_\w+)`", "".join(path.read_text() for path in DOCS.glob("*.md"))))
    sources = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert len(named) >= 9
    assert {name for name in named if f"def {name}(" not in sources} == set()

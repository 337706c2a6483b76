"""What the documentation says in figures, held against the code."""

import re
from pathlib import Path

import pytest

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

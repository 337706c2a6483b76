"""The README's example runs as it stands, and what it says about commands and rendering is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import trebi_gym
from trebi_gym.commands.cli import COMMANDS
from trebi_gym.envs.rendering import RENDERING_NEEDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def python_block() -> str:
    """Return the README's only Python block."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def test_the_example_runs_to_the_end_of_an_episode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_config: Any
) -> None:
    # the same code with a configuration that learns in seconds
    original = trebi_gym.TREBIAgent.__init__
    monkeypatch.setattr(
        trebi_gym.TREBIAgent,
        "__init__",
        lambda self, *args, **kwargs: original(self, *args, **{"config": tiny_config, **kwargs}),
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(python_block(), "README.md", "exec"), {})  # noqa: S102
    cost, kept = capsys.readouterr().out.split()
    assert float(cost) >= 0
    assert kept == str(float(cost) <= 30.0)
    assert (tmp_path / "agent.zip").is_file()


def test_the_example_has_twelve_lines_of_code_at_the_most() -> None:
    lines = [line for line in python_block().splitlines() if line.strip()]
    assert len(lines) <= 12


def test_every_trebi_command_in_the_readme_exists() -> None:
    named = set(re.findall(r"^(?:\.venv/bin/)?trebi (\w+)", README, flags=re.MULTILINE))
    assert named
    assert named <= set(COMMANDS)


def test_every_script_in_the_readme_exists() -> None:
    named = set(re.findall(r"python (scripts/\w+\.py)", README))
    assert len(named) >= 5
    for script in named:
        assert (ROOT / script).is_file()


def test_the_readme_says_what_rendering_needs() -> None:
    assert RENDERING_NEEDS in README

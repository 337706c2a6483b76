"""The command ``trebi``: parse, call, save. Each command is a function; its docstring is its help."""

from __future__ import annotations

from collections.abc import Callable

import tyro

from trebi_gym.commands.agents import calibrate, critics, evaluate, import_agent, learn, learn_part, record
from trebi_gym.commands.common import run
from trebi_gym.commands.data import convert, info
from trebi_gym.commands.demo import demo
from trebi_gym.commands.generate import generate

COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "learn": learn,
    "learn-part": learn_part,
    "import": import_agent,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "record": record,
    "critics": critics,
    "info": info,
    "convert": convert,
    "demo": demo,
}


DESCRIPTION = (
    "Learn an agent from logged episodes, and let it act within a cost budget that you set at run time. "
    "Each command tells its options with --help."
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an expected error is one line, without a traceback."""
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="trebi", args=arguments, description=DESCRIPTION
        )
    )

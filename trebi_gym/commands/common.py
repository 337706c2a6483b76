"""What the commands and the scripts share: errors for people, resumable learning, what an agent's file says."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym

from trebi_gym.errors import ConfigError, TrebiError
from trebi_gym.files import check_writable
from trebi_gym.rollout import BudgetChange


def run(command: Callable[[], Any]) -> None:
    """Call a command, and turn errors that are meant for people into one message and exit status 2.

    Modules in the present folder can be imported, so that ``my_tasks:SafeCar-v0`` works there as with ``python -m``.
    """
    if "" not in sys.path:
        sys.path.append("")
    before = signal.signal(signal.SIGTERM, _terminate)
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_end_all_the_same, hook)
    try:
        command()
    except (TrebiError, OSError, gym.error.Error) as error:
        if isinstance(error, BrokenPipeError):
            # the reader, such as head, has seen enough; nothing may be flushed to it when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _: object) -> None:
    """End as an exception, so that unfinished temporary files are removed on the way out."""
    raise SystemExit(128 + number)


def _end_all_the_same(hook: Callable[[Any], Any], lost: Any) -> None:
    """Send a signal again whose exception nobody got, as it was raised where a weak reference or an object ended.

    Python ignores what is raised there, and reading and writing HDF5 ends many such objects.
    """
    if isinstance(lost.exc_value, KeyboardInterrupt | SystemExit):
        number = signal.SIGINT if isinstance(lost.exc_value, KeyboardInterrupt) else signal.SIGTERM
        # a little later: raised here, it would be lost as the first was
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
    else:
        hook(lost)


def learn_with_checkpoints(
    agent: Any,
    learner: Callable[..., Any],
    dataset: Any,
    target: Path,
    *,
    total_steps: int | None,
    every: int,
    resume: bool,
    overwrite: bool = False,
) -> None:
    """Call a ``learn`` method and save the agent; on the way keep a copy from which ``resume`` goes on after a crash.

    Raises:
        ConfigError: a copy of an interrupted run is there and neither ``resume`` nor ``overwrite`` was asked for, or
            there is nothing to resume, or ``target`` cannot be written.
    """
    if every < 0:
        raise ConfigError(f"checkpoint_every must be at least 0; got {every}")
    partial = partial_file(target)
    if resume and not partial.is_file():
        raise ConfigError(f"there is nothing to resume: {partial} does not exist; leave --resume away")
    if partial.is_file() and not (resume or overwrite):
        raise ConfigError(
            f"{partial} is left from an interrupted run: pass --resume to go on with it, or delete it to start anew"
        )
    check_writable(target)
    log = agent.tensorboard_log
    if log is not None and Path(log).exists() and not Path(log).is_dir():
        raise ConfigError(f"the training log needs a folder, and {log} is a file")

    def keep(_: dict[str, Any], __: dict[str, Any]) -> bool:
        if every and agent.num_timesteps % every == 0:
            agent.save(partial)
        return True

    learner(dataset, total_steps=total_steps, callback=keep, resume_from=partial if resume else None)
    agent.save(target)
    partial.unlink(missing_ok=True)


def partial_file(target: Path) -> Path:
    """Return where the copy of an unfinished run lies."""
    return target.with_name(target.stem + ".partial.zip")


def parse_change(text: str) -> Any:
    """Return the ``BudgetChange`` that STEP:REMAINING stands for.

    Raises:
        ConfigError: the text has no such form.
    """
    step, colon, remaining = text.partition(":")
    try:
        return BudgetChange(int(step), remaining=float(remaining))
    except ValueError as error:
        if colon and isinstance(error, TrebiError):
            raise
        raise ConfigError(f"a change is written STEP:REMAINING, for example 100:6; got {text!r}") from error


def resolve_env(agent: Any) -> str:
    """Return the id of the environment that the agent's data came from.

    Raises:
        ConfigError: the data did not say, or named a module, which only the user may have imported.
    """
    found = agent.learned_from.get("env_id")
    if not found:
        raise ConfigError("the agent's data name no environment; pass --env ID")
    replaced = agent.learned_from.get("replaced_cost")
    if replaced:
        raise ConfigError(
            f"the agent was learned from costs that {replaced} gave, and {found} reports its own; pass --env with one "
            "that reports those: see CostWrapper"
        )
    # making "module:id" imports the module: a stranger's file must not choose what code runs
    if ":" in str(found):
        raise ConfigError(
            f"the agent's file names the environment {found!r}, a module of yours to import; pass --env {found}"
        )
    return str(found)


def resolve_maximum(agent: Any, maximum: float | None) -> float:
    """Return the budget at ratio 1: the given one, else that of the agent's data set.

    Raises:
        ConfigError: neither is known.
    """
    if maximum is not None:
        return maximum
    found = agent.learned_from.get("maximum_budget")
    if found is None:
        raise ConfigError(
            "the agent's file names no maximum budget; pass --maximum, or budgets instead of ratios"
        )
    if not found > 0:
        raise ConfigError(
            f"the data that the agent learned from give the maximum budget {found}, so that every ratio would be the same "
            "budget; pass --maximum, or budgets instead of ratios"
        )
    return float(found)

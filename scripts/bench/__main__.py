"""The timings of ``make bench``, as ``python -m scripts.bench``."""

from __future__ import annotations

from pathlib import Path

import tyro

from scripts.bench.run import benchmark, report, save
from trebi_gym.agents.presets import preset
from trebi_gym.commands.common import run
from trebi_gym.errors import ConfigError
from trebi_gym.files import check_writable


def bench(
    presets: tuple[str, ...] = ("fast", "toy_safe_env", "locomotion"),
    environments: tuple[int, ...] = (1, 16, 64),
    seconds: float = 20.0,
    longest: float = 60.0,
    scaling: bool = True,
    output: Path | None = None,
    device: str = "auto",
) -> None:
    """Time decisions and updates of the presets, in turns with the textbook way to compute the paper's.

    Args:
        presets: what to compare.
        environments: how many to plan for at once.
        seconds: about how long each thing is repeated.
        longest: leave out decisions of presets that are expected to take more seconds a call than this.
        scaling: also tell how the time of fast grows with candidates, horizon, denoising steps and environments.
        output: a JSON file for the figures.
        device: auto, cpu, cuda, ...
    """
    if not environments or min(environments) < 1:
        raise ConfigError(f"--environments must be numbers of at least 1; got {environments}")
    if not seconds > 0 or not longest > 0:
        raise ConfigError(f"--seconds and --longest must be positive; got {seconds} and {longest}")
    for name in presets:
        preset(name)
    if output is not None:
        check_writable(output)
    document = benchmark(
        presets, environments, seconds=seconds, longest=longest, scaling=scaling, device=device
    )
    print(report(document))
    if output is not None:
        save(document, output)
        print(f"written to {output}")


if __name__ == "__main__":
    run(lambda: tyro.cli(bench, prog="python -m scripts.bench"))

"""The commands about data sets that exist: what is in one, and the same in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from trebi_gym.errors import ConfigError, DatasetError
from trebi_gym.files import check_writable

T = TypeVar("T")
Positional = Annotated[T, tyro.conf.Positional]


def info(
    what: Positional[str],
    plot: Path | None = None,
    cost: str | None = None,
    name: str | None = None,
    episode_length: int | None = None,
) -> None:
    """Tell what a data set or a saved agent holds.

    Args:
        what: a data set's name, file or folder, or an agent's file or folder.
        plot: a picture of the episodes' returns and costs, .png, .pdf or .svg.
        cost: "module:name" of a cost function that takes the place of the stored costs.
        name: the known name of what the file holds, where its own does not say so.
        episode_length: the task's time limit in steps, where the file does not tell it.
    """
    from trebi_gym.describe import describe_agent, describe_dataset

    path = Path(what)
    if path.suffix == ".zip" or (path.is_dir() and any(path.glob("*.zip"))):
        if plot is not None or cost is not None or name is not None or episode_length is not None:
            raise ConfigError("--plot, --cost, --name and --episode-length are for data sets; got an agent")
        print(describe_agent(path))
        return
    from trebi_gym.datasets import load, resolve
    from trebi_gym.datasets.recipes import maximum_budget
    from trebi_gym.plots import plot_episodes

    if plot is not None:
        check_writable(plot)
    episodes = load(what, cost=cost, name=name, episode_length=episode_length)
    print(describe_dataset(episodes, resolve(what)))
    if plot is not None:
        plot_episodes(
            episodes.episode_returns,
            episodes.episode_costs,
            plot,
            maximum=maximum_budget(episodes).value,
            title=str(episodes.metadata.get("name", Path(what).name)),
        )
        print(f"drawn in {plot}")


def convert(
    dataset: str,
    output: Path,
    format: str = "native_hdf5",
    cost: str | None = None,
    name: str | None = None,
    episode_length: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a data set in another format, or with other costs.

    Args:
        dataset: a data set's name, file or folder, in any known format.
        output: the file; for Minari the folder, ROOT/NAMESPACE/NAME-vN.
        format: native_hdf5, dsrl, d4rl or minari.
        cost: "module:name" of a cost function that takes the place of the stored costs.
        name: the known name of what the file holds, where its own does not say so.
        episode_length: the task's time limit in steps, where the file does not tell it.
        overwrite: replace an existing file.
    """
    from trebi_gym.datasets import load, save
    from trebi_gym.datasets.sources import SOURCES

    if format not in SOURCES:
        raise DatasetError(f"--format must be one of {', '.join(SOURCES)}; got {format!r}")
    if output.exists() and (output.is_dir() or not overwrite):
        remedy = (
            "choose another --output" if output.is_dir() else "pass --overwrite or choose another --output"
        )
        raise DatasetError(f"{output} exists already; {remedy}")
    check_writable(output)
    episodes = load(dataset, cost=cost, name=name, episode_length=episode_length)
    save(episodes, output, format=format)
    print(f"{episodes}\nwritten to {output} as {format}")

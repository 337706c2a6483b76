"""Writes the same 20 episodes as D4RL, DSRL and Minari do, with none of this project's code.

``python write_foreign.py FOLDER``

Every cost tells the action that caused it: ``cost_t = 2 + action_t``. In the D4RL file it is the velocity along x, which
departs from step t; the position jumps at every reset. The last two actions of an episode are equal, so that a last step
that repeats the velocity of the step before is charged right.
"""

import os
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np

DT = 0.008  # hopper's
LIMIT = 9  # steps


def make_episodes():
    generator = np.random.default_rng(7)
    episodes = []
    for number in range(20):
        terminated = number % 3 == 0
        length = int(generator.integers(2, LIMIT)) if terminated else LIMIT
        actions = generator.uniform(-1, 1, (length, 2)).astype(np.float32)
        actions[-1, 0] = actions[-2, 0]
        last = np.concatenate([[[0.0, 0.0]], actions])
        steps = np.arange(length + 1.0)[:, None]
        observations = np.concatenate([steps, np.full_like(steps, number), last], axis=1).astype(np.float32)
        costs = (2 + actions[:, 0]).astype(np.float32)
        x = 100 * number + np.concatenate([[0.0], np.cumsum(DT * costs.astype(np.float64))])
        episodes.append(
            {
                "observations": observations,
                "actions": actions,
                "rewards": (10 * np.arange(length) + actions[:, 1]).astype(np.float32),
                "costs": costs,
                "x": x[:-1],
                "terminated": terminated,
            }
        )
    return episodes


def flat(episodes):
    def joined(key, rows=slice(None)):
        return np.concatenate([episode[key][rows] for episode in episodes])

    lengths = np.array([len(episode["rewards"]) for episode in episodes])
    ends = np.cumsum(lengths) - 1
    terminated = np.array([episode["terminated"] for episode in episodes])
    terminals, timeouts = np.zeros(lengths.sum(), bool), np.zeros(lengths.sum(), bool)
    terminals[ends[terminated]] = True
    timeouts[ends[~terminated]] = True
    return {
        "observations": joined("observations", slice(None, -1)),
        "next_observations": joined("observations", slice(1, None)),
        "actions": joined("actions"),
        "rewards": joined("rewards"),
        "costs": joined("costs"),
        "terminals": terminals,
        "timeouts": timeouts,
        "x": joined("x"),
    }


def write_d4rl(path, arrays, leave_out=()):
    with h5py.File(path, "w") as file:
        for key in ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts"):
            if key not in leave_out:
                file[key] = arrays[key]
        file["infos/qpos"] = np.stack([arrays["x"], np.cos(arrays["x"])], axis=1)
        file["infos/qvel"] = np.full((len(arrays["x"]), 2), 99.0)
        file["metadata/algorithm"] = "SAC"


def write_dsrl(path, arrays):
    with h5py.File(path, "w") as file:
        for key in (
            "observations",
            "next_observations",
            "actions",
            "rewards",
            "costs",
            "terminals",
            "timeouts",
        ):
            file.create_dataset(key, data=arrays[key], compression="gzip")


def write_minari(folder, name, episodes, data_format, reset_cost):
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    import gymnasium as gym
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for episode in episodes:
        length = len(episode["rewards"])
        end = np.arange(length) == length - 1
        costs = episode["costs"]
        if reset_cost is not False:
            costs = np.concatenate([[np.float32(77.0)], costs])
        if data_format == "arrow":
            costs = costs.tolist()  # Minari 0.5.4 cannot read plain arrays back
        buffers.append(
            EpisodeBuffer(
                observations=episode["observations"],
                actions=episode["actions"],
                rewards=episode["rewards"],
                terminations=end & episode["terminated"],
                truncations=end & (not episode["terminated"]),
                infos={"speed" if reset_cost is None else "cost": costs},
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffer=buffers,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
        action_space=gym.spaces.Box(-1, 1, (2,), np.float32),
        data_format=data_format,
    )


def main(folder):
    warnings.simplefilter("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    episodes = make_episodes()
    arrays = flat(episodes)
    write_d4rl(folder / "hopper_medium-v2.hdf5", arrays)
    (folder / "bare").mkdir()
    write_d4rl(folder / "bare" / "steps.hdf5", arrays, leave_out=("timeouts", "next_observations"))
    write_dsrl(folder / "dsrl.hdf5", arrays)
    for name, data_format, reset_cost in (
        ("toy/hdf5-v0", "hdf5", True),
        ("toy/short-v0", "hdf5", False),
        ("toy/arrow-v0", "arrow", True),
        ("toy/costless-v0", "hdf5", None),
    ):
        write_minari(folder / "minari", name, episodes, data_format, reset_cost)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())

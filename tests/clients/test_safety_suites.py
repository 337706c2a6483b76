"""Environments of safe reinforcement learning that others publish, through the whole way from data to decisions."""

import os
import pickle  # noqa: TID251 - between two processes of ours
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trebi_gym.commands.cli import main
from trebi_gym.datasets import load
from trebi_gym.envs.adapters import SafetyGymnasiumAdapter
from trebi_gym.evaluation.evaluate import evaluate_budgets
from trebi_gym.evaluation.records import Evaluation

HERE = Path(__file__).parent
BULLET = [f"Safety{body}{task}-v0" for body in ("Ball", "Car", "Drone", "Ant") for task in ("Run", "Circle")]


def trebi(folder, *words):
    """Run the command as a user does: the suite redirects the streams that pytest has replaced."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from trebi_gym.commands.cli import main; main()",
        *words,
    ]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.parametrize("env_id", BULLET)
def test_bullet_safety_gym_goes_through_generate_learn_and_evaluate(env_id, tmp_path):
    pytest.importorskip("pybullet")
    named = f"bullet_safety_gym:{env_id}"
    trebi(
        tmp_path,
        *("generate", "--dataset", named, "--datatype", "random"),
        *("--total-step", "1000", "--n-envs", "1", "--output", "data.hdf5"),
    )
    trebi(tmp_path, "learn", "--dataset", "data.hdf5", "--output", "agent.zip", "--total-steps", "24")
    evaluate = ("evaluate", "agent.zip", "--env", named, "--episodes", "1", "--budgets", "5")
    trebi(tmp_path, *evaluate, "--output", "out")
    dataset = load(tmp_path / "data.hdf5")
    assert dataset.n_steps >= 1000
    (record,) = Evaluation.from_json((tmp_path / "out" / "evaluation.json").read_text()).records
    assert record.length > 0
    assert np.isfinite([record.cost, record.episode_return]).all()


class Remote:
    """An environment in a process of its own Python, which has the packages that clash with ours."""

    def __init__(self, python, env_id):
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(HERE / "serve_environment.py"), env_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        spaces = self._receive()
        from gymnasium.spaces import Box

        self.observation_space, self.action_space = (
            Box(low, high, dtype=low.dtype) for low, high in spaces[:2]
        )
        self.max_episode_steps = spaces[2]

    def _receive(self):
        return pickle.load(self._process.stdout)

    def _ask(self, *message):
        pickle.dump(message, self._process.stdin, protocol=4)
        self._process.stdin.flush()
        return self._receive()

    def reset(self, *, seed=None, options=None):
        return self._ask("reset", seed)

    def step(self, action):
        return self._ask("step", np.asarray(action, np.float64).tolist())

    def close(self):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def test_safety_gymnasium_runs_behind_the_adapter_in_a_process_of_its_own(tmp_path, monkeypatch):
    import gymnasium as gym

    from trebi_gym.agents import TREBIAgent

    python = os.environ.get("TREBI_SAFETY_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip(
            "TREBI_SAFETY_PYTHON names no Python that has safety-gymnasium; make test-clients makes one"
        )
    gym.register(
        "RemotePointGoal-v0",
        entry_point=lambda: SafetyGymnasiumAdapter(Remote(python, "SafetyPointGoal1-v0")),
        max_episode_steps=40,
    )
    try:
        monkeypatch.chdir(tmp_path)
        generate = "generate --dataset RemotePointGoal-v0 --datatype random --total-step 200 --n-envs 1"
        main([*generate.split(), "--output", "data.hdf5"])
        main(["learn", "--dataset", "data.hdf5", "--output", "agent.zip", "--total-steps", "24"])
        agent = TREBIAgent.load("agent.zip", device="cpu")
        result = evaluate_budgets(agent, "RemotePointGoal-v0", budgets=[5.0], episodes=1, n_envs=1)
    finally:
        del gym.registry["RemotePointGoal-v0"]
    (record,) = result.records
    assert record.length == 40
    assert np.isfinite(record.cost)

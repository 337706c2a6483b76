"""What every environment, data format, sampler and network of ours must do; its messages are sentences.

``test_contracts.py`` runs these over the registries, so that a new entry is tested unasked.
"""

import json
import math
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from trebi_gym.agents.diffusion.denoising import pin_first_observation
from trebi_gym.agents.diffusion.guidance import BudgetGuide
from trebi_gym.agents.diffusion.samplers import Guidance
from trebi_gym.agents.diffusion.schedule import NoiseSchedule
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.datasets.sources import Reading
from trebi_gym.errors import DatasetError

ARRAYS = ("observations", "actions", "rewards", "costs", "lengths", "terminated", "truncated")


def our_env_ids():
    """Ids that this package registers."""
    return sorted(
        env_id
        for env_id, spec in gym.registry.items()
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith("trebi_gym.envs.")
    )


def check_environment(env_id, steps=8):
    """An environment that an agent can be learned for, and budgets be counted in."""
    with gym.make(env_id) as env:
        for name, space in (("observation", env.observation_space), ("action", env.action_space)):
            assert isinstance(space, gym.spaces.Box), f"{env_id}: the {name} space must be a Box."
            assert len(space.shape) == 1, f"{env_id}: the {name} space must have one dimension."
        assert env.action_space.is_bounded(), f"{env_id}: actions must be bounded, for uniform behaviour."
        assert env.spec.max_episode_steps, f"{env_id}: budgets are spread over a time limit, so it needs one."
        first = _numbers(env, seed=7, steps=steps, env_id=env_id)
        again = _numbers(env, seed=7, steps=steps, env_id=env_id)
        other = _numbers(env, seed=8, steps=steps, env_id=env_id)
        text = env.spec.to_json()
    np.testing.assert_array_equal(first, again, f"{env_id}: equal seeds must give equal episodes.")
    assert not np.array_equal(first, other), f"{env_id}: other seeds must give other episodes."
    with gym.make(EnvSpec.from_json(text)) as rebuilt:
        numbers = _numbers(rebuilt, seed=7, steps=steps, env_id=env_id)
    np.testing.assert_array_equal(first, numbers, f"{env_id}: its spec's JSON must rebuild it.")


def _numbers(env, *, seed, steps, env_id):
    observation, info = env.reset(seed=seed)
    assert info.get("cost") == 0.0, f"{env_id}: nothing has been done at reset, so its cost is 0.0."
    generator = np.random.default_rng(seed)
    rows = [np.append(observation, [0.0, 0.0])]
    for _ in range(steps):
        action = generator.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        cost = info.get("cost")
        assert isinstance(cost, float), f"{env_id}: a step's cost must be a float, got {type(cost).__name__}."
        assert math.isfinite(cost), f"{env_id}: a cost must be finite, got {cost}."
        assert np.isfinite(observation).all(), f"{env_id}: observations must be finite."
        rows.append(np.append(observation, [float(reward), cost]))
        if terminated or truncated:
            break
    return np.stack(rows)


def make_dataset(metadata=None):
    """Three episodes of different length and end, in which every number tells its place."""
    lengths, size = np.array([3, 1, 4]), 3
    steps, rows = int(lengths.sum()), int(lengths.sum()) + 3
    return EpisodeDataset(
        observations=np.arange(rows * size, dtype=np.float32).reshape(rows, size),
        actions=np.linspace(-1, 1, steps * 2, dtype=np.float32).reshape(steps, 2),
        rewards=10 + np.arange(steps, dtype=np.float32),
        costs=0.5 * np.arange(steps, dtype=np.float32),
        lengths=lengths,
        terminated=np.array([True, False, False]),
        truncated=np.array([False, True, True]),
        metadata=metadata or {"name": "contract"},
    )


def check_source(name, source):
    """A format that keeps every number, recognises its own files, and explains what it cannot read."""
    dataset = make_dataset()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("data-v0" if name == "minari" else "data.hdf5")
        source.write(dataset, path)
        assert path.exists(), f"{name}: write must make the path that it was given."
        assert list(Path(folder).iterdir()) == [path], f"{name}: write must leave nothing beside the path."
        assert source.recognises(path), f"{name}: a source must recognise what it wrote."
        again = source.read(path, Reading())
        for array in ARRAYS:
            before, after = getattr(dataset, array), getattr(again, array)
            np.testing.assert_array_equal(after, before, f"{name}: {array} must come back as they were.")
            assert after.dtype == before.dtype, f"{name}: {array} must keep their type."
        json.dumps(dict(again.metadata))
        charged = source.read(
            path, Reading(cost=lambda o, a, o_next, info: np.abs(a[..., 0]) + 0 * o_next[..., 0])
        )
        message = f"{name}: a given cost function must be charged on each row's own action."
        np.testing.assert_allclose(charged.costs, np.abs(dataset.actions[:, 0]), rtol=1e-6, err_msg=message)
        words = Path(folder) / "words.hdf5"
        words.write_text("no data")
        assert not source.recognises(words), f"{name}: a text file is not of this format."
        assert not source.recognises(Path(folder) / "missing"), (
            f"{name}: a missing file is not of this format."
        )
        largest = max(
            (file for file in [path, *path.rglob("*")] if file.is_file()),
            key=lambda file: file.stat().st_size,
        )
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        _refuses_or_does_not_recognise(name, source, path)


def _refuses_or_does_not_recognise(name, source, path):
    if not source.recognises(path):
        return
    try:
        source.read(path, Reading())
    except DatasetError:
        return
    raise AssertionError(f"{name}: a file that was cut short must be refused with a DatasetError.")


def check_sampler(name, sampler, rows=5, horizon=6, size=3):
    """A sampler that pins what is known, scores each plan, and draws from nothing but what it is given."""
    schedule = NoiseSchedule.cosine(8)
    observation = torch.tensor([[0.25, -0.75]])
    guide = BudgetGuide(
        lambda x, t: -((x - 1) ** 2).sum(dim=(1, 2)),
        lambda x, t: (x**2).sum(dim=(1, 2)),
        torch.full((rows,), 2.0),
    )

    def draw(seed, guided=True):
        generator = torch.Generator().manual_seed(seed)
        return sampler(
            lambda x, t: 0.5 * x,
            schedule,
            (rows, horizon, size),
            guide=guide if guided else None,
            pin=lambda x: pin_first_observation(x, observation, 1),
            draw_noise=lambda shape: torch.randn(shape, generator=generator),
            guidance=Guidance(scale=0.1, moves=1, stop_below=2, score=True),
            n_steps=schedule.n_steps,
        )

    before = torch.random.get_rng_state()
    x, scores = draw(0)
    assert x.shape == (rows, horizon, size), f"{name}: plans must have the shape that was asked for."
    assert torch.isfinite(x).all(), f"{name}: plans must be finite."
    assert not x.requires_grad, f"{name}: plans must carry no gradient."
    assert (x[:, 0, 1:] == observation).all(), f"{name}: the first observation must be pinned in the result."
    assert scores is not None, f"{name}: where scores are asked for, there must be some."
    shapes = (scores.rewards.shape, scores.costs.shape)
    assert shapes == ((rows,), (rows,)), f"{name}: every plan has one reward and one cost."
    assert torch.equal(x, draw(0)[0]), f"{name}: equal noise must give equal plans."
    assert not torch.equal(x, draw(1)[0]), f"{name}: other noise must give other plans."
    assert torch.equal(torch.random.get_rng_state(), before), f"{name}: draw from draw_noise, not globally."
    unguided, nothing = draw(0, guided=False)
    assert nothing is None, f"{name}: without a guide there are no scores."
    assert not torch.equal(unguided, x), f"{name}: a guide must move the plans."


def check_denoiser(name, network, rows=3, horizon=16, size=4):
    """A network that maps trajectories to trajectories, each by itself, and reads the noise level."""
    torch.manual_seed(0)
    model = network(horizon=horizon, transition_dim=size).eval()
    x, t = torch.randn(rows, horizon, size), torch.tensor([0, 5, 19])[:rows]
    with torch.no_grad():
        result = model(x, t)
        alone = model(x[1:2], t[1:2])
        shifted = model(x, t.flip(0))
    assert result.shape == x.shape, f"{name}: a denoiser must give (B, H, D)."
    message = f"{name}: a trajectory's result must not depend on its neighbours in the batch."
    torch.testing.assert_close(result[1:2], alone, rtol=1e-4, atol=1e-5, msg=message)
    assert not torch.allclose(result[0], shifted[0]), f"{name}: a denoiser must read the noise level."
    _check_weights(name, model)


def check_critic(name, network, rows=3, horizon=16, size=4):
    """A network that maps a trajectory to one number, with a gradient to follow."""
    torch.manual_seed(0)
    model = network(horizon=horizon, transition_dim=size).eval()
    x, t = torch.randn(rows, horizon, size, requires_grad=True), torch.tensor([0, 5, 19])[:rows]
    values = model(x, t, torch.full((rows,), 50.0))
    assert values.shape == (rows,), f"{name}: a critic must give (B,)."
    (gradient,) = torch.autograd.grad(values[1], x)
    assert gradient[1].abs().max() > 0, f"{name}: a critic must have a gradient to follow."
    message = f"{name}: a trajectory's value must not depend on its neighbours in the batch."
    assert gradient[0].abs().max() == gradient[2].abs().max() == 0, message
    with torch.no_grad():
        torch.testing.assert_close(model(x, t), values, msg=f"{name}: steps_left may be left away.")
        assert not torch.allclose(model(x, t.flip(0))[0], values[0]), f"{name}: it must read the noise level."
    _check_weights(name, model)


def _check_weights(name, model):
    state = model.state_dict()
    assert all(torch.is_tensor(value) for value in state.values()), f"{name}: weights must be plain tensors."
    pointers = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(pointers) == len(set(pointers)), (
        f"{name}: weights must not share memory: safetensors refuses it."
    )

"""Cost functions: literal values, leading axes, the recorded parity data, and how a name is resolved."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from trebi_gym import costs
from trebi_gym.costs import REACHER_GOAL, pendulum_cost, reacher_cost, resolve_cost
from trebi_gym.errors import EnvironmentContractError

DATA = Path(__file__).parent / "data"
NONE = np.zeros(0)


def pendulum_observation(degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians), np.zeros_like(radians)], axis=-1)


def reacher_observation(tip):
    tip = np.asarray(tip, dtype=float)
    return np.concatenate([np.zeros((*tip.shape[:-1], 8)), tip - REACHER_GOAL], axis=-1)


def test_pendulum_cost_is_a_triangle_from_minus_25_to_75_degrees():
    degrees = np.array([-180.0, -90.0, -26.0, -25.0, -20.0, 0.0, 25.0, 50.0, 75.0, 76.0, 179.0])
    expected = [0, 0, 0, 0, 0.1, 0.5, 1, 0.5, 0, 0, 0]
    np.testing.assert_allclose(
        pendulum_cost(pendulum_observation(degrees), NONE, NONE, {}), expected, atol=1e-12
    )


def test_pendulum_cost_is_of_the_state_before_the_step():
    upright, hanging = pendulum_observation(0.0), pendulum_observation(180.0)
    assert pendulum_cost(upright, NONE, hanging, {}) == 0.5
    assert pendulum_cost(hanging, NONE, upright, {}) == 0.0


def test_pendulum_cost_agrees_with_the_recorded_steps():
    data = load_file(DATA / "safe_pendulum.safetensors")
    cost = pendulum_cost(data["observation"], data["action"], data["next_observation"], {})
    assert (data["cost"] > 0).mean() > 0.1
    np.testing.assert_allclose(cost, data["cost"], rtol=0, atol=1e-14)


def test_reacher_cost_falls_linearly_from_100_at_the_centre_to_0_at_half_a_metre():
    tips = [[0.5, 0.5, 0.0], [0.75, 0.5, 0.0], [0.5, 0.1, 0.0], [0.5, 0.0, 0.0], [0.5, 0.5, 0.6]]
    expected = [100.0, 50.0, 20.0, 0.0, 0.0]
    np.testing.assert_allclose(reacher_cost(NONE, NONE, reacher_observation(tips), {}), expected, atol=1e-12)


def test_reacher_cost_is_of_the_state_after_the_step():
    inside, outside = reacher_observation([0.5, 0.5, 0.0]), reacher_observation([0.2, 0.0, 0.01])
    assert reacher_cost(outside, NONE, inside, {}) == 100.0
    assert reacher_cost(inside, NONE, outside, {}) == 0.0


def test_reacher_cost_agrees_with_the_recorded_fingertips():
    data = load_file(DATA / "safe_reacher.safetensors")
    recorded = np.stack([data[f"ep{episode}.cost"] for episode in range(6)])
    tips = np.stack([data[f"ep{episode}.tip"] for episode in range(6)])
    assert (recorded > 0).any()
    cost = reacher_cost(NONE, NONE, reacher_observation(tips[:, 1:]), {})
    np.testing.assert_allclose(cost, recorded, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cost", "size"), [(pendulum_cost, 3), (reacher_cost, 11)])
@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_leading_axes_are_free(cost, size, leading):
    observation = np.random.default_rng(0).normal(size=(*leading, size))
    together = cost(observation, NONE, observation, {})
    assert together.shape == leading
    one_by_one = [cost(row, NONE, row, {}) for row in observation.reshape(-1, size)]
    np.testing.assert_allclose(together.ravel(), one_by_one)


def test_a_cost_is_found_by_its_name_and_a_function_is_itself():
    assert resolve_cost("trebi_gym.costs:pendulum_cost") is costs.pendulum_cost
    assert resolve_cost(costs.reacher_cost) is costs.reacher_cost


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ("pendulum_cost", '"module:name"'),
        (":pendulum_cost", '"module:name"'),
        ("trebi_gym.costs:", '"module:name"'),
        (3, '"module:name"'),
        ("trebi_gym.costs:no_such_cost", "was not found"),
        ("no_such_module_at_all:cost", "was not found"),
        ("trebi_gym.costs:REACHER_GOAL", "not a function"),
    ],
)
def test_a_cost_that_cannot_be_found_is_refused_and_named(cost, message):
    with pytest.raises(EnvironmentContractError, match=message):
        resolve_cost(cost)

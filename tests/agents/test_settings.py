"""PyTorch's global settings: whatever the caller has set, learning and planning give the same numbers."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from trebi_gym.agents import TREBIAgent, preset
from trebi_gym.agents.baselines.cloning import BudgetCloning
from trebi_gym.agents.config import TrainingConfig
from trebi_gym.agents.torch_settings import usual_settings
from trebi_gym.evaluation.critic_report import report_critics

OBSERVATIONS = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.5], [0.0, 1.0, -2.0]])


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        assert torch.get_default_dtype() is dtype
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        assert torch.get_default_device().type == device
        torch.set_default_device(None)


SETTINGS = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "float64": lambda: default_dtype(torch.float64),
    "a default device": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture(params=sorted(SETTINGS))
def setting(request):
    """Something that a caller may have set, as a context to enter."""
    return SETTINGS[request.param]


@pytest.fixture(scope="session")
def few(shipped_dataset):
    """Enough episodes to learn something from in a moment."""
    return shipped_dataset.select(range(5))


def made(dataset, config):
    return TREBIAgent(config=config, device="cpu", seed=0).learn(dataset, 12, progress_bar=False)


def decided(agent):
    agent.set_random_seed(0)
    actions, state = agent.predict(OBSERVATIONS, budget=[5.0, 30.0, -1.0])
    plan = agent.plan(OBSERVATIONS, budget=20.0)
    least = agent.smallest_budget(OBSERVATIONS)
    return [actions, state.rewards, state.costs, plan.actions, plan.costs, least]


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("outcome", ["mlp", "budget"])
def test_learning_saving_loading_and_planning_give_the_same_numbers(
    few, tiny_config, setting, tmp_path, outcome
):
    config = tiny_config
    if outcome == "budget":
        config = config.replace(outcome_critic=preset("fast").outcome_critic, planner={"guide_scale": 0.5})
    expected = decided(made(few, config))
    with setting():
        agent = made(few, config)
        assert_equal(expected, decided(agent))
        loaded = TREBIAgent.load(agent.save(tmp_path / "a"), device="cpu")
        assert_equal(expected, decided(loaded))
    # what was made under a setting is of use outside of it, and the other way round
    assert_equal(expected, decided(agent))
    assert_equal(expected, decided(loaded))


def test_a_run_that_is_resumed_under_another_setting_is_the_same(few, tiny_config, setting, tmp_path):
    agent = TREBIAgent(config=tiny_config, device="cpu", seed=0)
    agent.learn(few, 12, callback=lambda local, _: local["self"].num_timesteps < 3, progress_bar=False)
    with setting():
        resumed = TREBIAgent(config=tiny_config, device="cpu", seed=0)
        resumed.learn(few, resume_from=agent.save(tmp_path / "a"), progress_bar=False)
    assert_equal(decided(made(few, tiny_config)), decided(resumed))


def test_the_papers_networks_plan_the_same(few, setting):
    small = {"options": {"dim": 8, "dim_mults": [1, 2]}}
    few_rows = {"batch_size": 4, "accumulation": 1}
    config = preset("toy_safe_env").replace(
        horizon=4,
        denoiser=small,
        reward_critic=small,
        cost_critic=small,
        denoiser_training=few_rows,
        critic_training=few_rows,
        planner={"candidates": 4, "sampler": "ddim", "sampler_steps": 3},
    )
    expected = decided(made(few, config))
    with setting():
        assert_equal(expected, decided(made(few, config)))


def test_cloning_gives_the_same_numbers(few, setting):
    def cloned():
        clone = BudgetCloning(30.0, training=TrainingConfig(steps=5)).learn(few)
        return [clone.predict(OBSERVATIONS)[0]]

    expected = cloned()
    with setting():
        assert_equal(expected, cloned())


def test_the_report_on_critics_gives_the_same_numbers(tiny_agent, few, setting):
    def reported():
        return report_critics(tiny_agent, few, windows=100).to_json()

    expected = reported()
    with setting():
        assert reported() == expected


def test_what_is_set_as_usual_is_left_alone_and_what_is_not_comes_back():
    with usual_settings():
        assert torch.is_grad_enabled()
    with torch.inference_mode():
        with usual_settings():
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    with default_dtype(torch.float64):
        with usual_settings():
            assert torch.get_default_dtype() is torch.float32
        with pytest.raises(ZeroDivisionError), usual_settings():
            raise ZeroDivisionError

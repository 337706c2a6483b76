"""The contracts of ``contracts.py`` over everything that is registered."""

import numpy as np
import pytest
import torch
from contracts import (
    check_critic,
    check_denoiser,
    check_environment,
    check_sampler,
    check_source,
    our_env_ids,
)
from toy_envs import register_toy_envs

from trebi_gym.agents.diffusion.samplers import SAMPLERS, ddim
from trebi_gym.agents.networks import CRITICS, DENOISERS
from trebi_gym.datasets.sources import SOURCES

register_toy_envs()


@pytest.mark.parametrize("env_id", our_env_ids())
def test_an_environment_keeps_the_contract(env_id):
    check_environment(env_id)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_data_format_keeps_the_contract(name):
    check_source(name, SOURCES[name])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_keeps_the_contract(name):
    check_sampler(name, SAMPLERS[name])


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_a_denoiser_keeps_the_contract(name):
    check_denoiser(name, DENOISERS[name])


@pytest.mark.parametrize("name", sorted(CRITICS))
def test_a_critic_keeps_the_contract(name):
    check_critic(name, CRITICS[name])


def test_both_tasks_are_among_the_environments():
    assert {"SafePendulum-v0", "SafeReacher-v0"} <= set(our_env_ids())


def test_the_contracts_can_be_broken():
    with pytest.raises(AssertionError, match=r"its cost is 0\.0"):
        check_environment("LedgerFree-v0")

    class Shifted:
        """A format that charges each step with the cost of the step before."""

        def __getattr__(self, name):
            return getattr(SOURCES["native_hdf5"], name)

        def read(self, path, reading):
            dataset = SOURCES["native_hdf5"].read(path, reading)
            object.__setattr__(dataset, "costs", np.roll(dataset.costs, 1))
            return dataset

    with pytest.raises(AssertionError, match="costs must come back as they were"):
        check_source("shifted", Shifted())

    def unpinned(*args, **options):
        x, scores = ddim(*args, **options)
        return x + 1, scores

    with pytest.raises(AssertionError, match="the first observation must be pinned"):
        check_sampler("unpinned", unpinned)

    class Blind(torch.nn.Module):
        def __init__(self, horizon, transition_dim):
            super().__init__()

        def forward(self, x, t, steps_left=None):
            return x

    with pytest.raises(AssertionError, match="must read the noise level"):
        check_denoiser("blind", Blind)
    with pytest.raises(AssertionError, match=r"a critic must give \(B,\)"):
        check_critic("blind", Blind)

"""The networks give what the original's gave, from the original's weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trebi_gym.agents.networks import TemporalCritic, TemporalUnet

DATA = Path(__file__).parents[1] / "data"


def recorded(task):
    path = DATA / f"networks_{task}.safetensors"
    with safe_open(path, framework="pt") as file:
        sizes = {key: json.loads(value) for key, value in file.metadata().items()}
    return load_file(path), sizes


def weights_of(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("task", ["hopper", "cheetah", "pendulum"])
def test_the_unet_loads_the_original_weights_strictly_and_gives_its_output(task):
    tensors, sizes = recorded(task)
    unet = TemporalUnet(
        sizes["horizon"],
        sizes["action_dim"] + sizes["observation_dim"],
        sizes["dim"],
        sizes["dim_mults"],
        sizes["attention"],
    )
    unet.load_state_dict(weights_of(tensors, "unet."), strict=True)
    with torch.no_grad():
        out = unet(tensors["x"], tensors["t"])
    torch.testing.assert_close(out, tensors["unet_out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["hopper", "cheetah"])
def test_the_critic_loads_the_original_weights_strictly_and_gives_its_output(task):
    tensors, sizes = recorded(task)
    critic = TemporalCritic(
        sizes["horizon"],
        sizes["action_dim"] + sizes["observation_dim"],
        sizes["value_dim"],
        sizes["dim_mults"],
    )
    critic.load_state_dict(weights_of(tensors, "value."), strict=True)
    with torch.no_grad():
        out = critic(tensors["x"], tensors["t"])
    torch.testing.assert_close(out, tensors["value_out"][:, 0], atol=1e-5, rtol=0)

"""Noising, the losses and the budget-guided sampling loop give what the original's gave."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trebi_gym.agents.diffusion.denoising import (
    add_noise,
    critic_loss,
    denoising_loss,
    loss_weights,
    pin_first_observation,
)
from trebi_gym.agents.diffusion.guidance import BudgetGuide, Scores, original_values, rank
from trebi_gym.agents.diffusion.samplers import Guidance, ddpm, ddpm_step
from trebi_gym.agents.diffusion.schedule import NoiseSchedule
from trebi_gym.agents.networks import TemporalCritic, TemporalUnet
from trebi_gym.agents.networks.fast_inference import for_inference

PATH = Path(__file__).parents[1] / "data" / "sampling.safetensors"
TENSORS = load_file(PATH)
with safe_open(PATH, framework="pt") as file:
    SIZES = {key: json.loads(value) for key, value in file.metadata().items()}
ACTION_DIM, HORIZON, STEPS = SIZES["action_dim"], SIZES["horizon"], SIZES["n_diffusion_steps"]
TRANSITION_DIM = ACTION_DIM + SIZES["observation_dim"]
CASES = sorted(SIZES["thresholds"])


def part(prefix):
    return {key.removeprefix(prefix): value for key, value in TENSORS.items() if key.startswith(prefix)}


def loaded(network, prefix):
    module = network(HORIZON, TRANSITION_DIM, SIZES["dim"], SIZES["dim_mults"])
    module.load_state_dict(part(prefix), strict=True)
    return module


LOSSES = part("losses.")
SCHEDULE = NoiseSchedule.cosine(STEPS)
UNET = loaded(TemporalUnet, "unet.")
REWARD = loaded(TemporalCritic, "reward.")
COST = loaded(TemporalCritic, "cost.")
# the networks as they are written, and the copies that the planner uses on a CPU
WRITTEN = (UNET, REWARD, COST)
PLANNED = tuple(for_inference(network, HORIZON, TRANSITION_DIM) for network in WRITTEN)
WAYS = pytest.mark.parametrize("way", [WRITTEN, PLANNED], ids=["as written", "as planned"])
GUIDANCE = Guidance(scale=SIZES["scale"], moves=SIZES["n_guide_steps"], stop_below=SIZES["t_stopgrad"])


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def pin_to_start(x):
    return pin_first_observation(x, TENSORS["start"][None], ACTION_DIM)


def pin_to_window(x):
    return pin_first_observation(x, LOSSES["x"][:, 0, ACTION_DIM:], ACTION_DIM)


def guide_of(case, way):
    threshold = torch.tensor([SIZES["thresholds"][case]])
    guide = BudgetGuide(
        way[1],
        way[2],
        threshold.expand(SIZES["candidates"]),
        cost_weight=SIZES["cost_grad_weight"],
        guide_type=int(case[-1]),
        skip_zeros=way is PLANNED,
    )
    return guide, threshold


def values_of(scores, threshold):
    return original_values(Scores(scores.rewards[None], scores.costs[None]), threshold)[0]


def test_noised_trajectories_are_those_of_the_original():
    close(add_noise(SCHEDULE, LOSSES["x"], LOSSES["t"], LOSSES["noise"]), LOSSES["q_sample"])


def test_loss_weights_are_those_of_the_original():
    close(loss_weights(HORIZON, ACTION_DIM, TRANSITION_DIM, SIZES["action_weight"]), LOSSES["weights"], 0)


def test_the_diffusion_loss_and_the_first_actions_loss_are_those_of_the_original():
    loss, first_action = denoising_loss(
        UNET,
        SCHEDULE,
        LOSSES["x"],
        LOSSES["t"],
        LOSSES["noise"],
        pin_to_window,
        LOSSES["weights"],
        action_dim=ACTION_DIM,
    )
    close(loss, LOSSES["diffusion_loss"])
    # The original divides an error that no weight was applied to by the weight; ours is the error itself.
    close(first_action / SIZES["action_weight"], LOSSES["a0_loss"])


def test_the_critic_loss_is_that_of_the_original():
    target = LOSSES["target"][:, 0]
    loss = critic_loss(REWARD, SCHEDULE, LOSSES["x"], LOSSES["t"], LOSSES["noise"], target, pin_to_window)
    close(loss, LOSSES["value_loss"])


@WAYS
@pytest.mark.parametrize("case", CASES)
def test_every_denoising_step_from_the_recorded_state_is_that_of_the_original(case, way):
    guide, threshold = guide_of(case, way)
    recorded = part(f"{case}.")
    for drawn in range(STEPS):
        x, scores = ddpm_step(
            way[0],
            SCHEDULE,
            recorded["chain"][:, drawn],
            STEPS - 1 - drawn,
            TENSORS["noise"][drawn + 1],
            guide=guide,
            pin=pin_to_start,
            guidance=GUIDANCE,
        )
        close(x, recorded["chain"][:, drawn + 1])
        close(scores.costs, recorded["step_costs"][drawn])
        close(values_of(scores, threshold), recorded["step_values"][drawn])


@WAYS
@pytest.mark.parametrize("case", CASES)
def test_the_free_running_loop_ends_in_the_plans_of_the_original_in_its_order(case, way):
    guide, threshold = guide_of(case, way)
    recorded = part(f"{case}.")
    noise = iter(TENSORS["noise"])
    x, scores = ddpm(
        way[0],
        SCHEDULE,
        (SIZES["candidates"], HORIZON, TRANSITION_DIM),
        guide=guide,
        pin=pin_to_start,
        draw_noise=lambda shape: next(noise),
        guidance=GUIDANCE,
    )
    assert next(noise, None) is None
    values = values_of(scores, threshold)
    order = values.argsort(descending=True, stable=True)
    close(x[order], recorded["trajectories"], 1e-3)
    close(values[order], recorded["values"], 1e-3)
    close(scores.costs[order], recorded["costs"], 1e-3)


@pytest.mark.parametrize("case", CASES)
def test_ranking_the_recorded_ends_puts_the_original_choice_first(case):
    recorded = part(f"{case}.")
    threshold = torch.tensor([SIZES["thresholds"][case]])
    # Where a plan is over the budget its value no longer tells its reward, and `rank` does not ask for it.
    scores = Scores(recorded["values"][None], recorded["costs"][None])
    assert rank(scores, threshold)[0, 0] == 0

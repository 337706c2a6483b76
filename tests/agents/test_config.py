"""Configurations: checked when they are made, written as JSON, and the paper's two as published."""

import dataclasses
import json

import numpy as np
import pytest

from trebi_gym.agents import (
    PRESETS,
    NetworkConfig,
    PlannerConfig,
    TrainingConfig,
    TREBIAgent,
    TREBIConfig,
    preset,
)
from trebi_gym.errors import ConfigError

PAPER_UNET = {"dim": 32, "dim_mults": [1, 2, 4, 8]}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_goes_through_json_unchanged(name):
    config = PRESETS[name]
    assert TREBIConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.preset == name


def test_a_changed_configuration_goes_through_json_unchanged():
    config = TREBIConfig(horizon=16, normalizer="limits", episode_length=50).replace(
        planner={"sampler_steps": None, "budget_factor": 0.5, "control_interval": 3},
        critic_training={"learning_rate_schedule": "cosine"},
    )
    assert TREBIConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_toy_safe_env_is_the_papers():
    config = preset("toy_safe_env")
    assert (config.horizon, config.diffusion_steps) == (32, 20)
    assert config.denoiser == NetworkConfig("temporal_unet", PAPER_UNET)
    assert config.reward_critic == config.cost_critic == NetworkConfig("temporal", PAPER_UNET)
    assert (config.discount, config.cost_discount) == (0.99, 0.99)
    assert (config.termination_reward, config.termination_cost) == (0.0, 0.0)
    assert config.first_action_weight == 10.0
    assert config.normalizer == "gaussian"
    training = {
        "steps": 200_000,
        "batch_size": 32,
        "accumulation": 2,
        "learning_rate": 2e-4,
        "learning_rate_schedule": "constant",
        "ema_decay": 0.995,
        "ema_start": 2_000,
        "ema_every": 10,
    }
    assert dataclasses.asdict(config.denoiser_training) == training
    assert dataclasses.asdict(config.critic_training) == training
    planner = config.planner
    assert (planner.candidates, planner.sampler, planner.sampler_steps) == (128, "ddpm", None)
    assert (planner.guide_scale, planner.guide_stop, planner.guide_moves) == (0.1, 2, 2)
    assert (planner.cost_weight, planner.guide_type) == (20.0, 0)
    assert planner.budget_rule == "constant"
    assert planner.budget_factor is None


def test_locomotion_is_the_papers():
    config, toy = preset("locomotion"), preset("toy_safe_env")
    assert (config.discount, config.cost_discount) == (0.997, 0.997)
    assert (config.termination_reward, config.termination_cost) == (-100.0, 100.0)
    assert config.denoiser_training == dataclasses.replace(toy.denoiser_training, steps=1_000_000)
    assert config.critic_training == toy.critic_training
    assert config.planner == dataclasses.replace(toy.planner, candidates=64, cost_weight=5.0)
    assert (config.horizon, config.diffusion_steps, config.denoiser) == (32, 20, toy.denoiser)


def test_the_default_is_the_preset_fast():
    assert TREBIConfig() == preset("fast")
    assert TREBIAgent().config == preset("fast")


def test_the_default_planner_is_that_of_the_preset_fast():
    assert PlannerConfig() == preset("fast").planner
    assert TREBIConfig(planner=PlannerConfig(margin=0.1)) == preset("fast").replace(planner={"margin": 0.1})


# a value for every field that no preset has, and that every preset can take
OTHER_PLANNER_VALUES = {
    "candidates": 7,
    "sampler": "ddim",
    "sampler_steps": 20,
    "retry_steps": 20,
    "guide_type": None,
    "cost_weight": 3.0,
    "guide_scale": 0.7,
    "retry_guide_scale": 0.4,
    "guide_moves": 3,
    "guide_stop": 1,
    "ranking": "original",
    "cost_level": 0.3,
    "budget_rule": "remaining",
    "budget_factor": 0.5,
    "margin": 0.25,
    "control_interval": 2,
    "precision": "bfloat16",
}


@pytest.mark.parametrize("field", [item.name for item in dataclasses.fields(PlannerConfig)])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_changing_one_field_of_a_presets_planner_changes_that_field_only(name, field):
    before = PRESETS[name]
    value = OTHER_PLANNER_VALUES[field]
    if field == "guide_type":
        value = 1 - before.planner.guide_type
    changed = before.replace(planner={field: value})
    assert changed == dataclasses.replace(
        before, planner=dataclasses.replace(before.planner, **{field: value})
    )
    differing = [
        item.name
        for item in dataclasses.fields(PlannerConfig)
        if getattr(changed.planner, item.name) != getattr(before.planner, item.name)
    ]
    assert differing in ([field], [])
    assert getattr(changed.planner, field) == value
    if before.preset == "fast":
        assert TREBIConfig(planner=PlannerConfig(**{field: value})) == changed


# every field of every preset's planner, written out: a changed default must not change a preset
PLANNERS = {
    "fast": {
        "candidates": 32,
        "sampler": "ddim",
        "sampler_steps": 3,
        "retry_steps": 5,
        "guide_type": 1,
        "cost_weight": 20.0,
        "guide_scale": 0.05,
        "retry_guide_scale": None,
        "guide_moves": 1,
        "guide_stop": 2,
        "ranking": "outcome",
        "cost_level": 0.1,
        "budget_rule": "remaining",
        "budget_factor": None,
        "margin": 0.05,
        "control_interval": 1,
        "precision": "float32",
    },
    "toy_safe_env": {
        "candidates": 128,
        "sampler": "ddpm",
        "sampler_steps": None,
        "retry_steps": None,
        "guide_type": 0,
        "cost_weight": 20.0,
        "guide_scale": 0.1,
        "retry_guide_scale": None,
        "guide_moves": 2,
        "guide_stop": 2,
        "ranking": "rescored",
        "cost_level": 0.1,
        "budget_rule": "constant",
        "budget_factor": None,
        "margin": 0.0,
        "control_interval": 1,
        "precision": "float32",
    },
}
PLANNERS["fast_long"] = PLANNERS["fast"] | {"guide_scale": 0.3, "retry_guide_scale": 0.0}
PLANNERS["locomotion"] = PLANNERS["toy_safe_env"] | {"candidates": 64, "cost_weight": 5.0}


def test_every_field_of_every_presets_planner_is_as_written_here():
    assert {name: dataclasses.asdict(config.planner) for name, config in PRESETS.items()} == PLANNERS


def test_a_dictionary_of_a_few_changes_is_the_default_with_these():
    changed = TREBIConfig.from_dict({"planner": {"margin": 0.1}})
    assert changed == TREBIConfig().replace(planner={"margin": 0.1})


def test_a_configuration_from_before_there_was_an_outcome_critic_is_read_as_it_was_meant():
    data = preset("toy_safe_env").to_dict()
    del data["outcome_critic"], data["outcome_training"], data["planner"]["retry_steps"]
    assert TREBIConfig.from_dict(data) == preset("toy_safe_env")


def test_a_preset_is_found_by_its_name_and_by_the_originals_way_of_writing_it():
    assert preset("config.toy_safe_env") is preset("toy_safe_env")
    assert TREBIAgent(config="config.locomotion").config is preset("locomotion")
    with pytest.raises(ConfigError, match=r"no preset 'slow'; there are .*toy_safe_env"):
        preset("slow")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1; got 0"),
        ({"diffusion_steps": 0}, "diffusion_steps must be at least 1"),
        ({"discount": 0.0}, r"discount must lie in \(0, 1\]; got 0.0"),
        ({"cost_discount": 1.01}, r"cost_discount must lie in \(0, 1\]"),
        ({"discount": float("nan")}, "discount must be finite; got nan"),
        ({"normalizer": "cdf"}, "normalizer must be one of gaussian, limits; got 'cdf'"),
        ({"denoiser": NetworkConfig("transformer")}, "denoiser must be one of .*mlp.*; got 'transformer'"),
        ({"reward_critic": NetworkConfig("temporal_unet")}, "reward_critic must be one of temporal, mlp"),
        ({"cost_critic": NetworkConfig("x")}, "cost_critic must be one of"),
        ({"horizon": 64, "episode_length": 50}, "64 steps is longer than an episode of 50"),
        ({"horizon": 36, "denoiser": NetworkConfig("temporal_unet")}, "must divide by 8; got 36"),
        ({"diffusion_steps": 4, "planner": {"sampler_steps": 5}}, "sampler_steps is 5, .* only 4 steps"),
        ({"horizon": 4, "planner": {"control_interval": 5}}, "control_interval is 5, .* only 4 steps"),
        ({"planner": {"candidates": 0}}, "candidates must be at least 1"),
        ({"planner": {"control_interval": 0}}, "control_interval must be at least 1"),
        ({"planner": {"sampler": "euler"}}, "sampler must be one of ddpm, ddim, dpm_solver; got 'euler'"),
        ({"planner": {"sampler_steps": 0}}, "sampler_steps must be at least 1, or None"),
        ({"planner": {"cost_weight": -1.0}}, "cost_weight must be at least 0"),
        ({"planner": {"cost_weight": float("nan")}}, "cost_weight must be finite; got nan"),
        ({"planner": {"guide_scale": -0.1}}, "guide_scale must be at least 0"),
        ({"planner": {"retry_guide_scale": -1.0}}, "retry_guide_scale must be at least 0, .*; got -1.0"),
        ({"planner": {"guide_moves": -1}}, "guide_moves must be at least 0"),
        ({"planner": {"guide_type": 2}}, "guide_type must be one of 0, 1; got 2"),
        ({"planner": {"ranking": "best"}}, "ranking must be one of outcome, rescored, original"),
        ({"planner": {"ranking": "original", "guide_moves": 0}}, "needs guide_moves of at least 1"),
        ({"planner": {"budget_rule": "x"}}, "budget_rule must be one of remaining, constant"),
        ({"planner": {"budget_factor": 0.0}}, "budget_factor must be positive"),
        ({"planner": {"candidate": 3}}, "no field candidate; it has .*candidates"),
        ({"denoiser_training": {"steps": 0}}, "steps must be at least 1"),
        ({"denoiser_training": {"batch_size": 0}}, "batch_size must be at least 1"),
        ({"critic_training": {"accumulation": 0}}, "accumulation must be at least 1"),
        ({"critic_training": {"learning_rate": 0.0}}, "learning_rate must be positive"),
        ({"critic_training": {"ema_decay": 1.0}}, r"ema_decay must lie in \[0, 1\)"),
        ({"critic_training": {"ema_start": -1}}, "ema_start must be at least 0"),
        ({"critic_training": {"ema_every": 0}}, "ema_every must be at least 1"),
        ({"critic_training": {"learning_rate_schedule": "step"}}, "must be one of constant, cosine"),
        ({"planner": {"margin": 1.0}}, r"margin must lie in \[0, 1\)"),
        ({"planner": {"margin": -0.1}}, r"margin must lie in \[0, 1\)"),
        ({"early_ends": 1.5}, r"early_ends must lie in \[0, 1\]; got 1.5"),
        (
            {"early_ends": 0.5, "cost_critic": NetworkConfig("mlp")},
            "early_ends is 0.5, so the critics need the option steps_left; .*cost_critic lack it",
        ),
        ({"horizon": 8.5}, "horizon must be of type int; got 8.5"),
        ({"horizon": "8"}, "horizon must be of type int; got '8'"),
        ({"planner": 3}, "planner must be a PlannerConfig; got 3"),
        ({"planner": {"candidates": 2.5}}, "candidates must be of type int; got 2.5"),
        ({"planner": {"control_interval": True}}, "control_interval must be of type int; got True"),
        ({"planner": {"margin": "a"}}, "margin must be of type float; got 'a'"),
        ({"planner": {"cost_weight": float("inf")}}, "cost_weight must be finite; got inf"),
        ({"horizons": 3}, "no field horizons; it has .*horizon"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(changes, message):
    with pytest.raises(ConfigError, match=message):
        TREBIConfig().replace(**changes)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("horizon",), "32", "config.horizon must be of type int; got '32'"),
        (("horizon",), 32.5, "config.horizon must be of type int"),
        (("horizon",), True, "config.horizon must be of type int"),
        (("horizon",), None, "config.horizon must be of type int"),
        (("discount",), "0.9", "config.discount must be of type float"),
        (("preset",), 3, "config.preset must be of type str"),
        (("planner",), [1], "config.planner must be an object with named fields"),
        (("planner", "candidates"), "many", "config.planner.candidates must be of type int"),
        (("planner", "speed"), 1, "config.planner has no field speed"),
        (("denoiser", "options"), 3, "config.denoiser.options must be of type"),
        (("speed",), 1, "config has no field speed"),
    ],
)
def test_json_of_another_shape_is_refused_with_the_place(path, value, message):
    document = TREBIConfig().to_dict()
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        TREBIConfig.from_dict(document)


def test_json_that_leaves_a_field_out_takes_its_default():
    assert TREBIConfig.from_dict({"horizon": 16}) == TREBIConfig(horizon=16)


def test_whole_numbers_are_accepted_where_a_float_is_asked():
    config = TREBIConfig.from_dict({"discount": 1})
    assert config.discount == 1.0
    assert isinstance(config.discount, float)


def test_replacing_changes_a_copy_only():
    config = TREBIConfig()
    changed = config.replace(planner={"candidates": 3})
    assert changed.planner.candidates == 3
    assert config == TREBIConfig()
    assert changed.replace(planner=config.planner) == config


def test_a_configuration_cannot_be_changed_in_place():
    for config in (TREBIConfig(), PlannerConfig(), TrainingConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, dataclasses.fields(config)[0].name, 1)


def test_options_that_a_network_does_not_take_are_refused_when_learning(shipped_dataset, tiny_config):
    config = tiny_config.replace(cost_critic=NetworkConfig("mlp", {"wide": 3}))
    with pytest.raises(ConfigError, match=r"'mlp' for cost_critic cannot be built: .*takes no wide"):
        TREBIAgent(config=config, device="cpu", seed=0).learn_cost_critic(shipped_dataset, progress_bar=False)


def test_numpys_whole_numbers_become_pythons():
    config = TREBIConfig().replace(planner={"candidates": np.int64(7)})
    assert type(config.planner.candidates) is int
    assert TREBIConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

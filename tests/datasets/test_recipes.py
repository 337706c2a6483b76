"""The eleven named data sets: what is known of each, and where each is looked for."""

import numpy as np
import pytest

from trebi_gym.agents.models import budget_factor, described
from trebi_gym.agents.presets import PRESETS, locomotion, preset, toy_safe_env
from trebi_gym.datasets import EpisodeDataset, load, resolve, save
from trebi_gym.datasets.recipes import (
    RECIPES,
    known_name,
    maximum_budget,
    places,
    published_recipe,
    recipe_for_file,
)
from trebi_gym.errors import DatasetError

# (undiscounted maximum, discounted maximum, factor, steps an episode, preset): TREBI's published numbers
PUBLISHED = {
    "SafePendulum-medium-replay-v0": (60, 16.70, 0.336, 200, "toy_safe_env"),
    "SafeReacher-medium-replay-v0": (14.29, 10.84, 0.728, 50, "toy_safe_env"),
    "hopper-medium-v2": (1800, 129.940, 129 / 1878, 1000, "locomotion"),
    "hopper-medium-replay-v2": (2000, 139.884, 139 / 2040, 1000, "locomotion"),
    "hopper-medium-expert-v2": (2600, 168.918, 168 / 2617, 1000, "locomotion"),
    "walker2d-medium-v2": (2600, 159.512, 163 / 2665, 1000, "locomotion"),
    "walker2d-medium-replay-v2": (2000, 160.251, 147 / 2185, 1000, "locomotion"),
    "walker2d-medium-expert-v2": (4000, 234.076, 234 / 3945, 1000, "locomotion"),
    "halfcheetah-medium-v2": (5400, 414.008, 421 / 5456, 1000, "locomotion"),
    "halfcheetah-medium-replay-v2": (4800, 384.375, 365 / 4883, 1000, "locomotion"),
    "halfcheetah-medium-expert-v2": (10000, 730.746, 710 / 11080, 1000, "locomotion"),
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders of ours, D4RL's and Minari's."""
    found = {}
    for variable in ("TREBI_DATA", "D4RL_DATASET_DIR", "MINARI_DATASETS_PATH"):
        found[variable] = tmp_path / variable
        found[variable].mkdir()
        monkeypatch.setenv(variable, str(found[variable]))
    return found


def test_every_name_of_the_original_has_its_published_numbers():
    found = {
        name: (
            recipe.maximum_budget,
            recipe.discounted_maximum,
            recipe.budget_factor,
            recipe.episode_length,
            recipe.preset,
        )
        for name, recipe in RECIPES.items()
    }
    assert found == PUBLISHED


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_named_data_set_has_a_registered_task_of_its_episode_length(name):
    import gymnasium as gym

    recipe = RECIPES[name]
    spec = gym.spec(recipe.env_id)
    assert spec.max_episode_steps == recipe.episode_length
    assert [wrapper.kwargs["cost"] for wrapper in spec.additional_wrappers] == [recipe.cost]
    if recipe.dt is not None:
        with gym.make(recipe.env_id) as env:
            assert env.unwrapped.dt == pytest.approx(recipe.dt)


def test_the_papers_settings_of_a_data_set_are_those_that_it_publishes():
    cheetah = preset("config.locomotion", "halfcheetah-medium-replay-v2")
    assert (cheetah.horizon, cheetah.preset) == (4, "locomotion")
    assert cheetah.denoiser.options == {"dim": 32, "dim_mults": [1, 4, 8], "attention": True}
    assert cheetah.cost_critic.options == cheetah.reward_critic.options == {"dim": 32, "dim_mults": [1, 4, 8]}
    assert (cheetah.planner.guide_scale, cheetah.planner.guide_stop) == (1e-3, 4)
    expert = preset("locomotion", "hopper-medium-expert-v2")
    assert (expert.horizon, expert.planner.guide_scale, expert.planner.guide_stop) == (32, 1e-4, 4)
    assert preset("locomotion", "hopper-medium-v2") == preset("locomotion") == locomotion
    assert preset("toy_safe_env", "halfcheetah-medium-v2") == toy_safe_env
    assert preset("fast", "halfcheetah-medium-v2") == PRESETS["fast"]


def test_a_file_is_known_by_our_name_and_by_the_one_that_d4rl_gives_it(tmp_path):
    assert recipe_for_file(tmp_path / "hopper-medium-v2.hdf5").name == "hopper-medium-v2"
    assert recipe_for_file(tmp_path / "walker2d_medium_replay-v2.hdf5").name == "walker2d-medium-replay-v2"
    assert recipe_for_file(tmp_path / "mine.hdf5") is None
    assert known_name("hopper-medium-v2") == known_name("x/hopper_medium-v2.hdf5") == "hopper-medium-v2"
    assert known_name("mine.hdf5") is None


def test_a_name_is_looked_for_in_our_folder_then_d4rls_then_minaris(folders):
    name = "hopper-medium-v2"
    in_order = [
        folders["TREBI_DATA"] / "hopper-medium-v2.hdf5",
        folders["TREBI_DATA"] / "hopper_medium-v2.hdf5",
        folders["D4RL_DATASET_DIR"] / "hopper_medium-v2.hdf5",
        folders["MINARI_DATASETS_PATH"] / "hopper-medium-v2",
    ]
    listed = [place for place in places(name) if place in in_order]
    assert listed == in_order
    for place in reversed(in_order):
        place.touch()
        assert resolve(name) == place


def test_a_missing_name_tells_where_it_was_looked_for_and_both_commands(folders):
    with pytest.raises(DatasetError) as caught:
        load("walker2d-medium-replay-v2")
    text = str(caught.value)
    for place in places("walker2d-medium-replay-v2"):
        assert str(place) in text
    target = folders["TREBI_DATA"]
    assert f"curl -L --create-dirs -o {target}/walker2d_medium_replay-v2.hdf5 http" in text
    assert (
        "trebi generate --dataset SafeWalker2d-v0 --datatype medium-replay --total-step 302000 "
        f"--output {target}/walker2d-medium-replay-v2.hdf5"
    ) in text


def test_a_name_that_is_only_built_tells_that_command(folders):
    with pytest.raises(
        DatasetError, match="build it with\n  trebi generate --dataset SafeReacher-v0"
    ) as caught:
        load("SafeReacher-medium-replay-v0")
    assert "curl" not in str(caught.value)


def test_an_unknown_hint_is_refused_with_the_known_names(shipped_dataset):
    with pytest.raises(DatasetError, match=r"name must be one of .*hopper-medium-v2.*; got 'hopper'"):
        load("SafePendulum-medium-replay-v0", name="hopper")
    with pytest.raises(DatasetError, match="episode_length must be a number of steps, at least 1; got 0"):
        load("SafePendulum-medium-replay-v0", episode_length=0)


def of_costs(costs, metadata=None):
    """A data set of one-step episodes that cost these."""
    count = len(costs)
    return EpisodeDataset(
        observations=np.zeros((2 * count, 1)),
        actions=np.zeros((count, 1)),
        rewards=np.zeros(count),
        costs=np.array(costs, dtype=np.float64),
        lengths=np.ones(count, dtype=np.int64),
        terminated=np.zeros(count, dtype=bool),
        truncated=np.ones(count, dtype=bool),
        metadata=metadata or {},
    )


def test_budgets_come_from_the_costs_where_none_is_published():
    found = maximum_budget(of_costs(range(11)))
    assert found.value == pytest.approx(9.0)
    assert found.rule == "0.9 quantile of the data set's episode costs"
    rare = maximum_budget(of_costs([0.0] * 30 + [4.0]))
    assert (rare.value, rare.rule) == (4.0, "greatest cost of an episode: nine in ten cost nothing")
    published = maximum_budget(of_costs(range(11), {"name": "hopper-medium-v2"}))
    assert (published.value, published.rule) == (1800.0, "published for hopper-medium-v2")


def test_a_built_stand_in_keeps_its_own_name_and_so_its_own_budgets(folders):
    place = folders["TREBI_DATA"] / "hopper-medium-v2.hdf5"
    save(of_costs(range(11), {"name": "SafeHopper-medium-v0"}), place)
    found = load("hopper-medium-v2")
    assert found.metadata["name"] == "SafeHopper-medium-v0"
    assert maximum_budget(found).value == pytest.approx(9.0)


def five(observation, action, next_observation, info):
    return np.full(np.shape(action)[:-1], 5.0)


def test_what_is_published_for_a_data_set_does_not_hold_for_other_costs(tmp_path):
    name = "SafePendulum-medium-replay-v0"
    assert published_recipe(load(name)).maximum_budget == 60
    replaced = load(name, cost=five)
    assert replaced.metadata["replaced_cost"] == "five"
    assert published_recipe(replaced) is None
    assert maximum_budget(replaced).value == pytest.approx(1000.0)
    assert budget_factor(replaced, preset("toy_safe_env")) is None
    save(replaced, tmp_path / "five.hdf5")
    assert maximum_budget(load(tmp_path / "five.hdf5")).value == pytest.approx(1000.0)
    assert described(replaced)["replaced_cost"] == "five"


def test_a_given_episode_length_that_an_episode_exceeds_is_refused():
    with pytest.raises(
        DatasetError, match="an episode has 200 steps, more than the given episode_length of 50"
    ):
        load("SafePendulum-medium-replay-v0", episode_length=50)


def test_a_folder_that_is_only_called_like_a_data_set_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SafePendulum-medium-replay-v0").mkdir()
    assert len(load("SafePendulum-medium-replay-v0")) == 100
    (tmp_path / "mine").mkdir()
    with pytest.raises(DatasetError, match="mine is a folder but no Minari data set"):
        load("mine")


def test_a_name_that_is_too_long_for_a_file_is_only_unknown():
    with pytest.raises(DatasetError, match="no data set"):
        load("x" * 5000)

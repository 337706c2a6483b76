"""The original's accounting: a discounted budget from which discounted costs are taken."""

import numpy as np
import pytest
from toy_envs import Scripted, register_toy_envs

from trebi_gym.agents.planning.policies import OriginalAccounting
from trebi_gym.rollout import make_envs, rollout

register_toy_envs()
ACTIONS = (0.5, -0.25, 1.0, 0.75, -1.0)


def test_step_t_is_held_against_the_discounted_budget_less_the_discounted_costs():
    inner = Scripted(ACTIONS)
    policy = OriginalAccounting(inner, factor=0.3, discount=0.9)
    list(rollout(policy, make_envs("Ledger-v0", 2), budgets=[10.0, 20.0, 40.0], seed=0))
    costs = 2 + np.array(ACTIONS)
    paid = np.concatenate([[0.0], np.cumsum(0.9 ** np.arange(5) * costs)])[:5]
    told = [budget for call in inner.calls for budget in call["budget"] if budget.total < 1e9]
    for total in (10.0, 20.0, 40.0):
        mine = [budget for budget in told if budget.total == pytest.approx(0.3 * total)]
        assert [budget.step for budget in mine] == [0, 1, 2, 3, 4]
        expected = (0.3 * total - paid) / 0.9 ** np.arange(5)
        np.testing.assert_allclose([budget.remaining for budget in mine], expected, rtol=1e-6)
        assert {budget.discount for budget in mine} == {0.9}


def test_it_differs_from_multiplying_what_is_left():
    inner = Scripted(ACTIONS)
    list(rollout(OriginalAccounting(inner, 0.3, 0.9), make_envs("Ledger-v0", 1), budgets=[10.0], seed=0))
    left = 10.0 - np.concatenate([[0.0], np.cumsum(2 + np.array(ACTIONS))])[:5]
    told = np.array([call["budget"][0].remaining for call in inner.calls])
    assert not np.allclose(told[1:], 0.3 * left[1:])


def test_seeding_reaches_the_policy():
    inner = Scripted()
    OriginalAccounting(inner, 0.3, 0.9).set_random_seed(7)
    assert inner.seeds == [7]

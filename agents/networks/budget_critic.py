"""What a finished plan is worth under a budget: its own reward and cost, and the best continuation that the data allow."""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

SHORT = 20.0
"""Steps below which a continuation counts as short: what its end costs weighs more than its rate."""
TARGET_RATE = 0.01
"""How far the target networks follow the learned ones at every update."""


class Segment(NamedTuple):
    """Stretches of logged episodes, relabelled with budgets and numbers of steps left that are drawn."""

    start: Tensor  # (B, O) normalised observations
    budget: Tensor  # (B,) what may be spent from there on
    left: Tensor  # (B,) steps left from there on
    reward: Tensor  # (B,) of the stretch
    cost: Tensor  # (B,) of the stretch
    steps: Tensor  # (B,) its length
    end: Tensor  # (B, O) normalised observations behind it
    over: Tensor  # (B,) whether the task ended the episode there


class BudgetCritic(nn.Module):
    """Judge finished plans under a budget, all sums undiscounted.

    Four parts: a model of where one step leads, since a plan's observations need not be what its actions lead to; a model
    of one step's reward and cost, by which those of a plan's first steps are summed; the value of where they end, the most
    that the rest may earn if it costs no more than what is then left; and the least that the rest can cost. The last two are
    learned by in-sample dynamic programming: an upper (lower) expectile over logged continuations, as in implicit
    Q-learning (arXiv 2110.06169). Every one is relabelled with many budgets and numbers of steps left, since neither changes
    what happens. Costs beyond the budget are paid for.

    Args:
        horizon: H, rows of a trajectory.
        transition_dim: D, action and observation dimensions together.
        action_dim: A, the first columns.
        width: units of a layer of the values.
        step_width: units of a layer of the model of a step.
        expectile: in (0.5, 1): towards 1, the best logged continuation counts for more.
        judged_steps: of a plan, whose reward and cost are summed; what follows is left to the value of where they lead.
        episode_length: the scale of steps left.
        cost_scale: the scale of budgets.

    Raises:
        ValueError: a size or scale that cannot be.
    """

    penalty: Tensor
    scales: Tensor
    known: Tensor
    greatest_reward: Tensor
    step_centre: Tensor
    step_scale: Tensor
    lowest: Tensor
    highest: Tensor
    move_scale: Tensor
    may_end: Tensor

    def __init__(
        self,
        horizon: int,
        transition_dim: int,
        action_dim: int = 1,
        width: int = 256,
        step_width: int = 64,
        expectile: float = 0.85,
        judged_steps: int = 16,
        episode_length: int = 1,
        cost_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if horizon < 2 or not 0 < action_dim < transition_dim:
            raise ValueError(
                f"a plan needs 2 rows and 0 < action_dim < {transition_dim}; got {horizon} rows and action_dim {action_dim}"
            )
        if width < 1 or step_width < 1:
            raise ValueError(f"widths must be at least 1; got {width} and {step_width}")
        if isinstance(judged_steps, bool) or not isinstance(judged_steps, int) or judged_steps < 1:
            raise ValueError(f"judged_steps must be a whole number of at least 1; got {judged_steps!r}")
        if not 0.5 < expectile < 1:
            raise ValueError(f"the expectile must lie in (0.5, 1); got {expectile!r}")
        if not (cost_scale > 0 and episode_length >= 1):
            raise ValueError(f"scales must be positive; got {cost_scale!r} and {episode_length!r}")
        self.horizon, self.transition_dim, self.action_dim = horizon, transition_dim, action_dim
        self.expectile, self.judged_steps = float(expectile), judged_steps
        self.cost_scale, self.episode_length = float(cost_scale), float(episode_length)
        size = transition_dim - action_dim
        self.step = nn.Sequential(
            nn.Linear(size + transition_dim, step_width),
            nn.SiLU(),
            nn.Linear(step_width, step_width),
            nn.SiLU(),
            nn.Linear(step_width, 2),
        )
        self.value_net = _mlp(size + 4, width)
        self.least_net = _mlp(size + 2, max(1, width // 2))
        self.move = _mlp(transition_dim, max(1, width // 2), size + 1)
        self.value_target = copy.deepcopy(self.value_net).requires_grad_(False)
        self.least_target = copy.deepcopy(self.least_net).requires_grad_(False)
        for name, numbers in (
            ("penalty", [1.0]),
            ("scales", [1.0, 1.0]),
            ("known", [-1.0, 1.0]),
            ("greatest_reward", [1.0]),
            ("step_centre", [0.0, 0.0]),
            ("step_scale", [1.0, 1.0]),
            ("lowest", [-1.0] * transition_dim),
            ("highest", [1.0] * transition_dim),
            ("move_scale", [1.0] * size),
            ("may_end", [0.0]),
        ):
            self.register_buffer(name, torch.tensor(numbers))

    def set_scales(
        self, rewards: Tensor, costs: Tensor, budgets: tuple[float, float], overspending: float
    ) -> None:
        """Fit what is not learned to the rewards (S,) and costs (S,) of all logged steps.

        ``budgets`` are the least and the greatest that it learns of. A cost beyond the budget is paid for with
        ``overspending`` times what the data earn for such a cost.
        """
        self.known.copy_(torch.tensor(budgets))
        reward = rewards.abs().mean().clamp(min=1e-6)
        cost = costs.abs().mean().clamp(min=1e-6)
        self.scales.copy_(torch.stack([reward, cost]))
        self.penalty.fill_(float(overspending * reward / cost))
        self.greatest_reward.fill_(float(rewards.quantile(0.995) if len(rewards) < 2**24 else rewards.max()))
        values = torch.stack([rewards, costs], dim=1)
        self.step_centre.copy_(values.mean(dim=0))
        if len(values) > 1:
            self.step_scale.copy_(values.std(dim=0).clamp(min=1e-6))

    def set_moves(self, rows: Tensor, after: Tensor, moves: Tensor, may_end: bool) -> None:
        """Fit what is not learned of where steps lead.

        Args:
            rows: (S, D) of all logged steps.
            after: (S, O) observations behind them, with them the range of what is known.
            moves: (M, O) by how much observations changed in some of them; the unit of its errors.
            may_end: whether the task ended any logged episode.
        """
        size, low, high = self.action_dim, rows.amin(dim=0), rows.amax(dim=0)
        self.lowest.copy_(torch.cat([low[:size], torch.minimum(low[size:], after.amin(dim=0))]))
        self.highest.copy_(torch.cat([high[:size], torch.maximum(high[size:], after.amax(dim=0))]))
        if len(moves) > 1:
            self.move_scale.copy_(moves.std(dim=0).clamp(min=1e-6))
        self.may_end.fill_(float(may_end))

    def steps(self, rows: Tensor, after: Tensor) -> Tensor:
        """Return reward and cost (..., 2) of the steps of rows (..., D), behind which after (..., O) is seen."""
        raw = cast(Tensor, self.step(torch.cat([rows, after], dim=-1)))
        return raw * self.step_scale + self.step_centre

    def value(self, observations: Tensor, budgets: Tensor, left: Tensor, *, target: bool = False) -> Tensor:
        """Return the most that is earned (B,) from observations (B, O) on with so much left to spend (B,) and steps (B,).

        Costs beyond the budget are subtracted, times ``penalty``. A budget may be infinite.
        """
        net = self.value_target if target else self.value_net
        # beyond those that were learned of, more is no better, and less only costs more
        seen = torch.minimum(torch.maximum(budgets, self.known[0]), self.known[1])
        rate = (seen / (left + 0.5 * SHORT) * (self.episode_length / self.cost_scale)).clamp(-5.0, 5.0)
        features = [seen / self.cost_scale, left / self.episode_length, rate, (left / SHORT).clamp(max=1.0)]
        raw = net(torch.cat([observations, torch.stack(features, dim=1)], dim=1))
        return self.scales[0] * _over_time(raw, left) - self.penalty * (-budgets).clamp(min=0.0)

    def least(self, observations: Tensor, left: Tensor, *, target: bool = False) -> Tensor:
        """Return the least that is spent (B,) from observations (B, O) on in so many steps (B,)."""
        net = self.least_target if target else self.least_net
        features = [left / self.episode_length, (left / SHORT).clamp(max=1.0)]
        raw = net(torch.cat([observations, torch.stack(features, dim=1)], dim=1))
        return self.scales[1] * _over_time(raw, left)

    def moves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return how observations change (B, O) in the steps of rows (B, D), and logits (B,) that the task ends there."""
        raw = cast(Tensor, self.move(rows))
        return raw[:, :-1] * self.move_scale, raw[:, -1]

    def rolled(self, start: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows (B, K, D) of steps that actions (B, K, A) take from observations (B, O), and what is behind each.

        That is an observation (B, K, O). The third are the probabilities (B, K + 1) of getting to each step and behind the
        last, rather than that the task has ended the episode before.
        """
        size = self.action_dim
        actions = actions.clamp(self.lowest[:size], self.highest[:size])
        alive = [torch.ones_like(start[:, 0])]
        rows, after = [], []
        for action in actions.unbind(dim=1):
            rows.append(torch.cat([action, start], dim=1))
            change, ending = self.moves(rows[-1])
            # no further than the data went: nothing is known of what lies beyond
            start = (start + change).clamp(self.lowest[size:], self.highest[size:])
            after.append(start)
            alive.append(alive[-1] * (1.0 - self.may_end * torch.sigmoid(ending)))
        return torch.stack(rows, dim=1), torch.stack(after, dim=1), torch.stack(alive, dim=1)

    def judge(
        self, x: Tensor, steps_left: Tensor, budgets: Tensor, level: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what plans x (B, H, D) and the best after them earn (B,) within budgets (B,), and the least cost (B,).

        Only a plan's first observation and its actions count: where they lead is what the model of a step says, not what
        the plan shows. ``level`` is of no use here: the least cost is learned at one expectile.
        """
        count = min(self.judged_steps, self.horizon - 1)
        rows, after, alive = self.rolled(x[:, 0, self.action_dim :], x[:, :count, : self.action_dim])
        live = torch.arange(count, device=x.device) < steps_left[:, None]
        steps = self.steps(rows, after) * live[:, :, None]
        reward, cost = (steps * alive[:, :-1, None]).sum(dim=1).unbind(dim=1)
        rest, end = (steps_left - count).clamp(min=0.0), after[:, -1]
        # what goes on has cost all of the steps, what the task has ended on the way a part of them
        going = self.value(end, budgets - steps[:, :, 1].sum(dim=1), rest)
        over = -self.penalty * (cost - budgets).clamp(min=0.0)
        worth = torch.where(rest > 0, torch.lerp(over, going, alive[:, -1]), over)
        least = torch.where(rest > 0, alive[:, -1] * self.least(end, rest).clamp(min=0.0), 0.0)
        return reward + worth, cost + least

    def follow(self) -> None:
        """Move the target networks towards the learned ones."""
        with torch.no_grad():
            for target, learned in (
                (self.value_target, self.value_net),
                (self.least_target, self.least_net),
            ):
                for old, new in zip(target.parameters(), learned.parameters(), strict=True):
                    old.lerp_(new, TARGET_RATE)


def budget_loss(critic: BudgetCritic, drawn: Segment) -> tuple[Tensor, Tensor]:
    """Return the expectile losses of the value and of the least cost, both in units of their scales."""
    with torch.no_grad():
        left, rest = drawn.budget - drawn.cost, drawn.left - drawn.steps
        ended = drawn.over | (rest <= 0)
        going = torch.minimum(critic.value(drawn.end, left, rest, target=True), rest * critic.greatest_reward)
        worth = drawn.reward + torch.where(ended, -critic.penalty * (-left).clamp(min=0.0), going)
        later = critic.least(drawn.end, rest, target=True).clamp(min=0.0)
        least = drawn.cost + torch.where(ended, 0.0, later)
    units = critic.scales * critic.episode_length
    value_error = (worth - critic.value(drawn.start, drawn.budget, drawn.left)) / units[0]
    least_error = (least - critic.least(drawn.start, drawn.left)) / units[1]
    return _expectile(value_error, critic.expectile), _expectile(least_error, 1.0 - critic.expectile)


def step_losses(
    critic: BudgetCritic, x: Tensor, after: Tensor, told: Tensor, inside: Tensor, ended: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the models of a step: reward and cost, where it leads, and whether the task ends with it.

    Args:
        critic: whose models they are.
        x: (B, H, D) windows.
        after: (B, H, O) observations behind their steps.
        told: (B, H, 2) rewards and costs.
        inside: (B, H) whether a step is logged; others do not count.
        ended: (B, H) whether the task ended the episode with it.
    """
    change, ending = critic.moves(x.flatten(0, 1))
    moved = after - x[:, :, critic.action_dim :]
    off = ((change.view(moved.shape) - moved) / critic.move_scale)[:, :-1]
    missed = (critic.steps(x[:, :-1], after[:, :-1]) - told[:, :-1]) / critic.step_scale
    surprise = nn.functional.binary_cross_entropy_with_logits(
        ending.view(inside.shape), ended.to(ending.dtype), reduction="none"
    )
    step, move, end = (
        torch.where(logged, error, 0.0).sum() / logged.sum().clamp(min=1)
        for error, logged in (
            (missed.square().mean(dim=2), inside[:, :-1]),
            (off.square().mean(dim=2), inside[:, :-1]),
            (surprise, inside),
        )
    )
    return step, move, end


def _expectile(error: Tensor, level: float, bend: float = 0.05) -> Tensor:
    """Return the mean expectile loss of errors (B,), linear beyond ``bend``, in which the squares have unit size."""
    weight = torch.where(error > 0, level, 1.0 - level)
    size = error.abs()
    return (weight * torch.where(size < bend, size.square(), bend * (2.0 * size - bend))).mean() / bend**2


def _mlp(features: int, width: int, outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, width),
        nn.LayerNorm(width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.LayerNorm(width),
        nn.SiLU(),
        nn.Linear(width, outputs),
    )


def _over_time(raw: Tensor, left: Tensor) -> Tensor:
    """Return a sum over so many steps (B,) from a rate and from what is only once, raw (B, 2)."""
    return left * raw[:, 0] + SHORT * (left / SHORT).clamp(max=1.0) * raw[:, 1]

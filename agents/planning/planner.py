"""None"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trebi_gym.agents.calibration.statistics import AnyCalibration
from trebi_gym.agents.config import PlannerConfig, TREBIConfig
from trebi_gym.agents.diffusion.denoising import pin_first_observation
from trebi_gym.agents.diffusion.guidance import BudgetGuide, Scores, original_values, rank
from trebi_gym.agents.diffusion.samplers import SAMPLERS, Guidance, count_draws
from trebi_gym.agents.diffusion.schedule import NoiseSchedule
from trebi_gym.agents.models import OUTCOME, PARTS, Task
from trebi_gym.agents.networks import MLPDenoiser, PlanCritic
from trebi_gym.agents.networks.cuda_graphs import Recordings, computing_in
from trebi_gym.agents.networks.fast_inference import for_inference, pair
from trebi_gym.agents.planning.budgets import (
    Request,
    check_actions,
    check_scores,
    geometric_sum,
    planning_budgets,
)
from trebi_gym.agents.planning.state import PlanState, continued, hold_back
from trebi_gym.agents.spaces import fit_actions
from trebi_gym.datasets import AffineNormalizer
from trebi_gym.errors import ObservationError


@dataclass(frozen=True)
class Plan:
    """N candidate plans of H steps for each of E environments, the best first."""

    actions: npt.NDArray[np.float32]  # (E, N, H, A)
    observations: npt.NDArray[np.float32]  # (E, N, H, O)
    rewards: npt.NDArray[
        np.float32
    ]  # (E, N) predicted reward to the end, discounted unless the outcome critic says it
    costs: npt.NDArray[np.float32]  # (E, N) predicted cost to the episode's end, in the critic's units
    budgets: npt.NDArray[np.float32]  # (E,) what the costs were held against, in the same units

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """(E, N) whether a plan is predicted to keep its budget; none keeps one below zero."""
        kept: npt.NDArray[np.bool_] = (self.costs <= self.budgets[:, None]) & (self.budgets >= 0)[:, None]
        return kept


@dataclass(frozen=True)
class Candidates:
    """What the search leaves on the device."""

    trajectories: torch.Tensor  # (E, N, H, D) normalised, in drawing order
    rewards: torch.Tensor  # (E, N)
    costs: torch.Tensor  # (E, N)
    order: torch.Tensor  # (E, N) indices, best first

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """The fields, in order."""
        return self.trajectories, self.rewards, self.costs, self.order


def least_costs(costs: torch.Tensor) -> torch.Tensor:
    """Return the least cost (E,) of the candidates (E, N); one that is not a number counts as infinite."""
    return torch.nan_to_num(costs, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(dim=1)


Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

MAX_ROWS = 16_384
"""Plans that are denoised in one pass by an MLP; more environments are planned for in several passes."""

MAX_CONVOLVED_ROWS = 2_048
"""The same for networks that convolve, whose gradient keeps some 0.3 MB a plan."""


class BudgetGuidedPlanner:
    """Plans for many environments at once, each with its own budget.

    Args:
        denoiser: predicts clean trajectories (B, H, D).
        reward_critic: predicts the reward to come.
        cost_critic: predicts the cost to come.
        schedule: of the noise.
        config: sampler, candidates, guidance and ranking.
        horizon: H.
        observation_normalizer: of the O observation columns.
        action_normalizer: of the A action columns.
        outcome_critic: scores finished plans for ``ranking="outcome"``; None where there is none.
        cost_discount: of the cost critic, in whose units plans' costs and budgets are.
        cost_scale: the greatest cost-to-go in the data, the unit in which a denoiser that is conditioned on cost is asked
            for plans; None for one that is not.
        least_steps_left: the fewest steps left that the critics were trained on.
        max_rows: plans that are denoised in one pass.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        reward_critic: nn.Module,
        cost_critic: nn.Module,
        schedule: NoiseSchedule,
        config: PlannerConfig,
        *,
        horizon: int,
        observation_normalizer: AffineNormalizer,
        action_normalizer: AffineNormalizer,
        outcome_critic: nn.Module | None = None,
        cost_discount: float = 1.0,
        cost_scale: float | None = None,
        least_steps_left: int = 1,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self.config = config
        self._denoiser = denoiser.eval().requires_grad_(False)
        self._reward_critic = reward_critic.eval().requires_grad_(False)
        self._cost_critic = cost_critic.eval().requires_grad_(False)
        self._both = pair(reward_critic, cost_critic)
        self._outcome_critic = None if outcome_critic is None else outcome_critic.eval().requires_grad_(False)
        self._cost_discount = cost_discount
        self._max_rows = max_rows
        self._schedule = schedule
        self._horizon = horizon
        self._observations = observation_normalizer
        self._actions = action_normalizer
        self._action_size = len(action_normalizer.center)
        self._size = self._action_size + len(observation_normalizer.center)
        self._cost_scale = cost_scale
        self._least_steps_left = least_steps_left
        self._device = next(denoiser.parameters()).device
        # the samplers that start anew draw as often, whatever their steps, or are told to take all of them
        self._draws = max(
            count_draws(SAMPLERS[config.sampler], schedule, steps)
            for steps in (config.sampler_steps, config.retry_steps or config.sampler_steps)
        )
        self._sampled = Recordings(partial(self._sample, config.sampler_steps, config.guide_scale))
        self._sampled_again = None
        if config.retry_steps is not None:
            scale = config.guide_scale if config.retry_guide_scale is None else config.retry_guide_scale
            self._sampled_again = Recordings(partial(self._sample, config.retry_steps, scale))

    def search(
        self,
        observations: Array,
        budgets: Array,
        steps_left: Array,
        generator: torch.Generator,
        discounted: Array | None = None,
    ) -> Candidates:
        """Sample and rank candidates.

        Args:
            observations: (E, O) raw.
            budgets: (E,) what the rest of the episode may cost, in the cost critic's units; may be infinite.
            steps_left: (E,) steps to the end of the episode.
            generator: of the noise.
            discounted: (E,) whether a budget is discounted, so that the outcome critic's plain sums do not fit it;
                None: none is.
        """
        start = self._tensor(self._observations.normalize(observations))
        budget, left = self._tensor(budgets), self._tensor(steps_left)
        plain = self._tensor(np.ones(len(start)) if discounted is None else ~np.asarray(discounted)) > 0
        asked = (start, budget, left, plain)
        at_once = max(1, self._max_rows // self.config.candidates)
        parts = [
            self._search(tuple(value[first : first + at_once] for value in asked), generator)
            for first in range(0, len(start), at_once)
        ]
        if len(parts) == 1:
            return parts[0]
        return Candidates(
            *(torch.cat(tensors) for tensors in zip(*(part.parts for part in parts), strict=True))
        )

    def _search(self, asked: tuple[torch.Tensor, ...], generator: torch.Generator) -> Candidates:
        """Search for as many environments at once as memory is meant to hold."""
        shape = (len(asked[0]) * self.config.candidates, self._horizon, self._size)
        noise = [torch.randn(shape, generator=generator, device=self._device) for _ in range(self._draws)]
        found = Candidates(*self._sampled(*asked, *noise))
        if self._sampled_again is None:
            return found
        # the one place where planning waits for a GPU before its end
        broken = ((least_costs(found.costs) > asked[1]) | (asked[1] < 0)).nonzero()[:, 0]
        if len(broken) == 0:
            return found
        # from the same noise, so that what one environment needs changes nothing for another
        rows = self._padded(broken)
        again = Candidates(
            *self._sampled_again(
                *(value[rows] for value in asked),
                *(value.view(-1, self.config.candidates, *shape[1:])[rows].flatten(0, 1) for value in noise),
            )
        )
        cheaper = least_costs(again.costs[: len(broken)]) < least_costs(found.costs[broken])
        for new, old in zip(again.parts, found.parts, strict=True):
            old[broken[cheaper]] = new[: len(broken)][cheaper]
        return found

    def _padded(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows, on a GPU with the last one repeated up to a power of two: few shapes are recorded then."""
        if self._device.type == "cpu":
            return rows
        more = (1 << (len(rows) - 1).bit_length()) - len(rows)
        return torch.cat([rows, rows[-1:].expand(more)])

    def _sample(
        self,
        n_steps: int | None,
        guide_scale: float,
        start: torch.Tensor,
        budget: torch.Tensor,
        steps_left: torch.Tensor,
        plain: torch.Tensor,
        *noise: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return the fields of ``Candidates``; nothing here waits for a GPU or draws, so that it can be recorded."""
        config, environments = self.config, len(start)
        rows = environments * config.candidates
        start, budgets, left, plain = (
            value.repeat_interleave(config.candidates, dim=0) for value in (start, budget, steps_left, plain)
        )
        condition: tuple[torch.Tensor, ...] = ()
        if self._cost_scale is not None:
            # asked for plans of every cost up to the budget, so that cheap ones are always among the candidates
            share = torch.linspace(1.0, 0.0, config.candidates, device=self._device)
            condition = ((budgets / self._cost_scale).clamp(0.0, 1.0) * share.repeat(environments),)

        def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            clean: torch.Tensor = self._denoiser(x, t, *condition)
            return clean.float()

        guide = BudgetGuide(
            reward_critic=self._reward_critic,
            cost_critic=self._cost_critic,
            budgets=budgets,
            cost_weight=config.cost_weight,
            guide_type=config.guide_type,
            steps_left=left.clamp(min=self._least_steps_left),
            both=self._both,
            skip_zeros=self._both is None and self._device.type == "cpu",
        )
        original = config.ranking == "original"
        # a move of no length is left out, and its gradient with it
        moves = config.guide_moves if guide_scale > 0 or original else 0
        drawn = iter(noise)
        with computing_in(config.precision, self._device):
            x, scores = SAMPLERS[config.sampler](
                denoise,
                self._schedule,
                (rows, self._horizon, self._size),
                guide=guide,
                pin=lambda x: pin_first_observation(x, start, self._action_size),
                draw_noise=lambda shape: next(drawn),
                guidance=Guidance(guide_scale, moves, config.guide_stop, score=original),
                n_steps=n_steps,
            )
        with computing_in("float32", self._device):
            if not original or scores is None:
                scores = guide.scores(x, torch.zeros(1, dtype=torch.long, device=self._device).expand(rows))
            if config.ranking == "outcome":
                scores = self._outcome(x, left, budgets, plain, scores)
        shaped = Scores(*(value.float().view(environments, config.candidates) for value in scores))
        if original:
            order = original_values(shaped, budget).argsort(dim=1, descending=True, stable=True)
        else:
            order = rank(shaped, budget)
        plans = x.view(environments, config.candidates, self._horizon, self._size)
        return plans, shaped.rewards, shaped.costs, order

    def _outcome(
        self, x: torch.Tensor, left: torch.Tensor, budgets: torch.Tensor, plain: torch.Tensor, guided: Scores
    ) -> Scores:
        """Score finished plans by the outcome critic, costs in the cost critic's units; keep those of discounted budgets."""
        assert self._outcome_critic is not None
        unit = geometric_sum(self._cost_discount, left) / left
        critic = cast(PlanCritic, self._outcome_critic)
        reward, cost = critic.judge(x, left, budgets / unit, self.config.cost_level)
        return Scores(
            torch.where(plain, reward, guided.rewards), torch.where(plain, cost * unit, guided.costs)
        )

    def best_actions(self, candidates: Candidates, count: int) -> npt.NDArray[np.float32]:
        """Return the first ``count`` actions (E, count, A) of each environment's best plan, in raw units."""
        best = candidates.order[:, 0]
        rows = torch.arange(len(best), device=best.device)
        actions = candidates.trajectories[rows, best, :count, : self._action_size]
        return np.asarray(self._actions.unnormalize(actions.cpu().numpy()), dtype=np.float32)

    def best_scores(self, candidates: Candidates) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return predicted reward (E,) and cost (E,) of each environment's best plan."""
        first = candidates.order[:, :1]
        rewards = candidates.rewards.gather(1, first)[:, 0].cpu().numpy()
        return rewards, candidates.costs.gather(1, first)[:, 0].cpu().numpy()

    def plan(
        self,
        observations: Array,
        budgets: Array,
        steps_left: Array,
        generator: torch.Generator,
        discounted: Array | None = None,
    ) -> Plan:
        """Return every candidate, the best first; arguments as for ``search``."""
        found = self.search(observations, budgets, steps_left, generator, discounted)
        order = found.order[:, :, None, None].expand_as(found.trajectories)
        trajectories = found.trajectories.gather(1, order).cpu().numpy()
        return Plan(
            actions=self._actions.unnormalize(trajectories[..., : self._action_size]).astype(np.float32),
            observations=self._observations.unnormalize(trajectories[..., self._action_size :]).astype(
                np.float32
            ),
            rewards=found.rewards.gather(1, found.order).cpu().numpy(),
            costs=found.costs.gather(1, found.order).cpu().numpy(),
            budgets=self._tensor(budgets).cpu().numpy(),
        )

    def _tensor(self, values: Array) -> torch.Tensor:
        with np.errstate(over="ignore"):  # a budget beyond float32 is infinite
            return torch.as_tensor(np.asarray(values, dtype=np.float32), device=self._device)


def make_planner(
    models: Mapping[str, nn.Module], task: Task, config: TREBIConfig, device: torch.device
) -> BudgetGuidedPlanner:
    """Return the planner of an agent's models, by their names."""
    conditioned = bool(config.denoiser.options.get("condition"))
    size = task.action_size + task.observation_size
    denoiser, reward_critic, cost_critic = (
        for_inference(models[part], config.horizon, size) for part in PARTS
    )
    outcome_critic = for_inference(models[OUTCOME], config.horizon, size) if OUTCOME in models else None
    return BudgetGuidedPlanner(
        denoiser,
        reward_critic,
        cost_critic,
        NoiseSchedule.cosine(config.diffusion_steps).to(device),
        config.planner,
        horizon=config.horizon,
        observation_normalizer=task.observations,
        action_normalizer=task.actions,
        outcome_critic=outcome_critic,
        cost_discount=config.cost_discount,
        cost_scale=task.cost_scale if conditioned else None,
        least_steps_left=1 if config.early_ends > 0 else config.horizon,
        max_rows=MAX_ROWS if isinstance(denoiser, MLPDenoiser) else MAX_CONVOLVED_ROWS,
    )


class PlanningPolicy:
    """Decides: what may be spent, the best plan within it, and that plan's next action.

    Args:
        planner: that samples and ranks plans.
        task: what it knows of the data.
        config: of the agent.
        action_space: (A,) that actions lie in.
    """

    def __init__(
        self, planner: BudgetGuidedPlanner, task: Task, config: TREBIConfig, action_space: gym.spaces.Box
    ) -> None:
        self.planner, self.task = planner, task
        self._config, self._action_space = config, action_space
        self._has_warned = False

    def decide(
        self,
        request: Request,
        state: PlanState | None,
        episode_start: Array | None,
        noise: torch.Generator,
        *,
        deterministic: bool = False,
        calibration: AnyCalibration | None = None,
        risk: float | None = None,
    ) -> tuple[Array, PlanState]:
        """Return actions (E, A), or (A,) for a single observation, and the state for the next decision.

        Args:
            request: observations and budgets.
            state: of the last decision.
            episode_start: (E,) environments that have just been reset.
            noise: that plans are drawn from.
            deterministic: whether the noise is the same at every decision, which is not what was calibrated.
            calibration: of the agent, if a risk is asked for.
            risk: the chance of an episode over its budget; None leaves the calibration aside.

        Raises:
            ObservationError: the state is of other environments, or plans are not finite numbers.
            BudgetError: budgets that cannot be planned for.
            CalibrationError: the risk is not calibrated for.
        """
        length, interval = self.task.episode_length, self._config.planner.control_interval
        environments = len(request.observations)
        state = continued(state, episode_start, environments, interval, self.task.action_size)
        steps_left = request.count_steps_left(length, state.step)
        self._warn_beyond(request, state.step)
        steps = np.where(request.steps >= 0, request.steps, length - steps_left)
        # observations may tell that steps were taken, too
        begun = np.maximum(steps, length - steps_left) > 0
        reserve = hold_back(
            state, request, steps, calibration, risk, begun=begun, deterministic=deterministic
        )
        due = state.position >= interval
        if due.any():
            limits, thresholds = planning_budgets(
                request, steps_left, self._config, self.task.budget_factor, reserve
            )
            found = self.planner.search(
                request.observations[due],
                thresholds[due],
                steps_left[due],
                noise,
                request.discounts[due] != 1.0,
            )
            state.actions[due] = check_actions(self.planner.best_actions(found, interval))
            state.rewards[due], state.costs[due] = self.planner.best_scores(found)
            state.least[due] = least_costs(found.costs).cpu().numpy()
            check_scores(state.rewards[due], state.costs[due], state.least[due])
            with np.errstate(over="ignore"):  # a budget beyond float32 is infinite
                state.budgets[due], state.limits[due] = thresholds[due], limits[due]
            state.position[due] = 0
        actions = state.actions[np.arange(environments), state.position]
        state.position += 1
        state.step = (length - steps_left).astype(np.int64) + 1
        actions = fit_actions(actions, self._action_space)
        return (actions[0] if request.single else actions), state

    def plan(self, request: Request, noise: torch.Generator) -> Plan:
        """Return every candidate plan, the best first.

        Raises:
            ObservationError: plans are not finite numbers.
            BudgetError: budgets that cannot be planned for.
        """
        steps_left = request.count_steps_left(self.task.episode_length, None)
        self._warn_beyond(request, None)
        _, thresholds = planning_budgets(request, steps_left, self._config, self.task.budget_factor)
        found = self.planner.plan(
            request.observations, thresholds, steps_left, noise, request.discounts != 1.0
        )
        lowest = np.where(np.isnan(found.costs), np.inf, found.costs).min(axis=1)
        check_scores(found.rewards[:, 0], found.costs[:, 0], lowest)
        return found

    def smallest_budgets(self, request: Request, repeats: int, noise: torch.Generator) -> Floats:
        """Return the lowest undiscounted cost (E,) that any candidate is predicted to have, planned for at budget 0.

        Raises:
            ObservationError: no plan has a finite predicted cost.
        """
        steps_left = request.count_steps_left(self.task.episode_length, None)
        nothing = np.zeros(len(steps_left))
        lowest = np.full(len(steps_left), math.inf)
        for _ in range(repeats):
            found = self.planner.search(request.observations, nothing, steps_left, noise)
            lowest = np.minimum(lowest, least_costs(found.costs).cpu().numpy())
        if not np.isfinite(lowest).all():
            raise ObservationError(
                f"no plan from observation {int(np.flatnonzero(~np.isfinite(lowest))[0])} has a finite predicted cost: it "
                "lies far outside what was learned from; check its units"
            )
        discount = self._config.cost_discount
        if self._config.planner.budget_rule == "remaining":
            factor: Any = geometric_sum(discount, steps_left) / steps_left
        else:
            factor = 1.0 if discount == 1.0 else self.task.budget_factor
        return np.asarray(np.maximum(lowest, 0.0) / factor, dtype=np.float64)

    def _warn_beyond(self, request: Request, counted: npt.NDArray[np.int64] | None) -> None:
        """Warn, once, where an episode is longer than those that were learned from.

        Args:
            request: which may tell the steps taken, or those left.
            counted: (E,) steps taken, where the request does not tell; None: not known.
        """
        length = self.task.episode_length
        if self._has_warned:
            return
        if request.steps_left is not None:
            longest = int(request.steps_left.max())
            if longest <= length:
                return
            found = f"an observation tells that {longest} steps are left"
        else:
            steps = request.steps if counted is None else np.where(request.steps < 0, counted, request.steps)
            if steps.max() < length:
                return
            found = f"step {int(steps.max())} (the first is 0) is planned like the last one"
        self._has_warned = True
        warnings.warn(
            f"the agent learned from episodes of {length} steps, but {found}: nothing was learned of so long an episode, "
            f"and its predictions do not hold there; end episodes after {length} steps, or learn from longer ones",
            UserWarning,
            stacklevel=5,
        )

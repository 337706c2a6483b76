"""What an agent is made of, as frozen dataclasses that are checked when they are made and written as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trebi_gym.agents.diffusion.samplers import SAMPLERS
from trebi_gym.agents.networks import CRITICS, DENOISERS, OUTCOME_CRITICS, check_options
from trebi_gym.agents.networks.outcome import LEVELS
from trebi_gym.agents.serializable import build, check_types, choice, known, plain, require
from trebi_gym.datasets.normalizers import NORMALIZERS
from trebi_gym.errors import ConfigError

LONGEST_EPISODE = 10**9
"""Steps of a task's time limit, at most: beyond, float32 cannot tell one step left from none."""

MOST_LEVELS = 1024
"""Steps of a noise schedule, at most: as many as the networks' table of steps has."""

MOST_PASSES = 1 << 18
"""Plans that a decision takes through the networks, at most: the default takes some 400, the paper's 8,000."""


@dataclass(frozen=True)
class NetworkConfig:
    """A network by its name in the registry, with the options of its constructor."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class TrainingConfig:
    """How one model is optimised: Adam without decay or clipping, and an average of the weights that acts."""

    steps: int = 8_000
    """Optimiser steps."""
    batch_size: int = 256
    """Windows in one forward pass."""
    accumulation: int = 1
    """Forward passes whose gradients are averaged in one optimiser step."""
    learning_rate: float = 3e-4
    """Adam's, at the start."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """Constant, or falling to zero along a cosine over ``steps``."""
    ema_decay: float = 0.995
    """How much of the averaged weights an update keeps."""
    ema_start: int = 2_000
    """Before this step the average is a copy of the weights."""
    ema_every: int = 10
    """Steps between two updates of the average."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "batch_size", "accumulation", "ema_every"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1; got {getattr(self, name)}")
        require(self.learning_rate > 0, f"learning_rate must be positive; got {self.learning_rate}")
        require(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1); got {self.ema_decay}")
        require(self.ema_start >= 0, f"ema_start must be at least 0; got {self.ema_start}")
        choice("learning_rate_schedule", self.learning_rate_schedule, ("constant", "cosine"))


@dataclass(frozen=True)
class PlannerConfig:
    """How a decision is made from the models. The defaults are the planner of the preset ``fast``."""

    candidates: int = 32
    """N, plans sampled for every decision."""
    sampler: str = "ddim"
    """A name in ``SAMPLERS``."""
    sampler_steps: int | None = 3
    """Denoising steps of the sampler; None for all steps of the schedule."""
    retry_steps: int | None = 5
    """Denoising steps of a second search where no plan of the first keeps its budget; None for no second search."""
    guide_type: Literal[0, 1] = 1
    """1: ``grad R - w [C > b] grad C``; 0: the cost's gradient also grows with the relative excess."""
    cost_weight: float = 20.0
    """w, the weight of the cost's gradient where a plan breaks the budget."""
    guide_scale: float = 0.05
    """How far one guided move goes, in units of the posterior variance times the gradient."""
    retry_guide_scale: float | None = None
    """The same in the second search; None: as in the first. Far moves earn more, and may lead all plans away from cheap
    ones, which are to be found near to the data."""
    guide_moves: int = 1
    """Guided moves in every denoising step; 0 for selection only."""
    guide_stop: int = 2
    """No guided move in denoising steps below this one."""
    ranking: Literal["outcome", "rescored", "original"] = "outcome"
    """Rank the finished plans by the outcome critic, by the guiding critics' scores of them, or by those before the last
    guided move as the original does."""
    cost_level: float = 0.1
    """For ``ranking="outcome"`` by an outcome critic of the kind ``mlp``: the quantile of the cost to come that is held
    against the budget. What logged episodes cost after a plan depends on what was chosen later; a low quantile is what can
    be had by choosing well."""
    budget_rule: Literal["remaining", "constant"] = "remaining"
    """How an undiscounted budget becomes one in the cost critic's units: see ``agents.units``."""
    budget_factor: float | None = None
    """For ``budget_rule="constant"``; None: published for the data set, else the data's own ratio of the sums."""
    margin: float = 0.05
    """Share of what is left of the budget that planning holds back, against optimistic predictions."""
    control_interval: int = 1
    """Actions of a plan that are executed before the next plan is made."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the networks while plans are denoised and guided; finished plans are scored in float32 either way. TF32 is a way
    in which GPUs multiply float32; on a CPU it is float32."""

    def __post_init__(self) -> None:
        check_types(self)
        choice("sampler", self.sampler, SAMPLERS)
        choice("ranking", self.ranking, ("outcome", "rescored", "original"))
        choice("budget_rule", self.budget_rule, ("remaining", "constant"))
        choice("guide_type", self.guide_type, (0, 1))
        choice("precision", self.precision, ("float32", "tf32", "bfloat16"))
        for name in ("candidates", "control_interval"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("cost_weight", "guide_scale", "guide_moves", "guide_stop"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0; got {getattr(self, name)}")
        require(
            self.retry_guide_scale is None or self.retry_guide_scale >= 0,
            f"retry_guide_scale must be at least 0, or None for guide_scale; got {self.retry_guide_scale}",
        )
        require(0 < self.cost_level < 1, f"cost_level must lie in (0, 1); got {self.cost_level}")
        require(
            self.ranking != "outcome" or self.budget_rule == "remaining",
            'ranking="outcome" predicts undiscounted sums, so it needs budget_rule="remaining"; '
            f'got {self.budget_rule!r}, which ranking="rescored" can rank by',
        )
        require(0 <= self.margin < 1, f"margin must lie in [0, 1); got {self.margin}")
        for name, none in (("sampler_steps", "all"), ("retry_steps", "no second search")):
            steps = getattr(self, name)
            require(
                steps is None or steps >= 1, f"{name} must be at least 1, or None for {none}; got {steps}"
            )
        require(
            self.ranking != "original" or self.guide_moves >= 1,
            'ranking="original" ranks by what the guide said at its last move, so it needs guide_moves of at least 1',
        )
        require(
            self.budget_factor is None or self.budget_factor > 0,
            f"budget_factor must be positive; got {self.budget_factor}",
        )


@dataclass(frozen=True)
class TREBIConfig:
    """Everything that defines an agent. The defaults are the preset ``fast``; see ``agents.presets``.

    ``PlannerConfig(margin=0.1)`` is the planner of ``fast`` with one change. A ``TrainingConfig`` and a ``NetworkConfig``
    serve several models, so theirs are not those of each: ``replace(critic_training={"steps": 100})`` changes one field.
    """

    preset: str = "fast"
    """The preset that this started from."""
    horizon: int = 32
    """H, steps in a plan."""
    diffusion_steps: int = 20
    """T, steps of the noise schedule."""
    denoiser: NetworkConfig = NetworkConfig("mlp", {"width": 256, "blocks": 3, "condition": True})
    """The network that predicts clean trajectories."""
    reward_critic: NetworkConfig = NetworkConfig("mlp", {"width": 128, "blocks": 2, "steps_left": True})
    """The network that predicts the discounted reward still to come."""
    cost_critic: NetworkConfig = NetworkConfig("mlp", {"width": 128, "blocks": 2, "steps_left": True})
    """The network that predicts the discounted cost still to come."""
    outcome_critic: NetworkConfig | None = NetworkConfig("budget")
    """The network that judges finished plans, undiscounted: ``budget`` by the best that the data allow within the budget,
    ``mlp`` by how logged episodes went on; None: there is none."""
    discount: float = 0.99
    """Of rewards-to-go, in (0, 1]."""
    cost_discount: float = 0.99
    """Of costs-to-go, in (0, 1]."""
    cost_quantile: float | None = 0.9
    """The cost critic predicts this quantile of the cost to come; None: the mean, as in the paper."""
    early_ends: float = 0.0
    """Share of training windows whose episode is taken to end at a random earlier step, for critics that know the steps
    left: a time limit does not change what happens before it."""
    termination_reward: float = 0.0
    """Added to the last reward of an episode that the task ended."""
    termination_cost: float = 0.0
    """Added to the last cost of an episode that the task ended."""
    first_action_weight: float = 10.0
    """Weight of the first action in the denoiser's loss."""
    normalizer: str = "gaussian"
    """A name in ``NORMALIZERS``."""
    episode_length: int | None = None
    """The task's time limit in steps; None: taken from the data set when learning."""
    denoiser_training: TrainingConfig = TrainingConfig()
    """Of the denoiser."""
    critic_training: TrainingConfig = TrainingConfig(steps=4_000)
    """Of each critic."""
    outcome_training: TrainingConfig | None = TrainingConfig(
        steps=6_000, learning_rate=1e-3, learning_rate_schedule="cosine"
    )
    """Of the outcome critic; None: as the other critics."""
    planner: PlannerConfig = PlannerConfig()
    """How a decision is made."""

    def __post_init__(self) -> None:
        check_types(self)
        choice("denoiser", self.denoiser.name, DENOISERS)
        choice("reward_critic", self.reward_critic.name, CRITICS)
        choice("cost_critic", self.cost_critic.name, CRITICS)
        if self.outcome_critic is not None:
            choice("outcome_critic", self.outcome_critic.name, OUTCOME_CRITICS)
        for name, networks in (
            ("denoiser", DENOISERS),
            ("reward_critic", CRITICS),
            ("cost_critic", CRITICS),
            ("outcome_critic", OUTCOME_CRITICS),
        ):
            network: NetworkConfig | None = getattr(self, name)
            if network is not None:
                try:
                    check_options(networks[network.name], network.options)
                except ValueError as error:
                    raise ConfigError(f"{name}: {error}") from error
        require(
            self.outcome_critic is not None or self.planner.ranking != "outcome",
            'ranking="outcome" needs an outcome critic, and this configuration has none; use ranking="rescored", or '
            "a configuration with outcome_critic and learn it",
        )
        if (
            self.planner.ranking == "outcome"
            and self.outcome_critic is not None
            and self.outcome_critic.name == "mlp"
        ):
            levels = self.outcome_critic.options.get("levels", LEVELS)
            low, high = (levels[0], levels[-1]) if levels else (1.0, 0.0)
            require(
                low <= self.planner.cost_level <= high,
                f"cost_level is {self.planner.cost_level:g}, but the outcome critic learns the quantiles "
                f"{low:g} to {high:g}",
            )
        choice("normalizer", self.normalizer, NORMALIZERS)
        for name in ("horizon", "diffusion_steps"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1; got {getattr(self, name)}")
        require(
            self.diffusion_steps <= MOST_LEVELS,
            f"diffusion_steps must be at most {MOST_LEVELS}; got {self.diffusion_steps}",
        )
        require(
            self.episode_length is None or self.episode_length <= LONGEST_EPISODE,
            f"episode_length must be at most {LONGEST_EPISODE}; got {self.episode_length}",
        )
        require(
            self.outcome_critic is None or self.outcome_critic.name != "budget" or self.horizon >= 2,
            f"a budget critic judges where a plan's first step leads, so the horizon must be at least 2; got {self.horizon}",
        )
        for name in ("discount", "cost_discount"):
            require(0 < getattr(self, name) <= 1, f"{name} must lie in (0, 1]; got {getattr(self, name)}")
        require(
            self.cost_quantile is None or 0 < self.cost_quantile < 1,
            f"cost_quantile must lie in (0, 1); got {self.cost_quantile}",
        )
        require(
            self.episode_length is None or self.episode_length >= self.horizon,
            f"the horizon of {self.horizon} steps is longer than an episode of {self.episode_length}; set horizon or "
            "episode_length",
        )
        for name in ("sampler_steps", "retry_steps"):
            steps = getattr(self.planner, name)
            require(
                steps is None or steps <= self.diffusion_steps,
                f"{name} is {steps}, but the noise schedule has only {self.diffusion_steps} steps",
            )
            require(
                self.planner.sampler != "ddpm" or steps in (None, self.diffusion_steps),
                f"{name} is {steps}, but ddpm takes all {self.diffusion_steps} steps; use ddim, or set {name} to None",
            )
        steps = max(
            self.diffusion_steps if steps is None else steps
            for steps in (self.planner.sampler_steps, self.planner.retry_steps or 1)
        )
        passes = self.planner.candidates * steps * (1 + self.planner.guide_moves)
        require(
            passes <= MOST_PASSES,
            f"{self.planner.candidates} candidates of {steps} denoising steps with {self.planner.guide_moves} guided moves "
            f"each take {passes} plans through the networks for one decision; {MOST_PASSES} is the most",
        )
        require(
            self.planner.control_interval <= self.horizon,
            f"control_interval is {self.planner.control_interval}, but a plan has only {self.horizon} steps",
        )
        require(
            self.first_action_weight >= 0,
            f"first_action_weight must be at least 0; got {self.first_action_weight}",
        )
        require(0 <= self.early_ends <= 1, f"early_ends must lie in [0, 1]; got {self.early_ends}")
        blind = [
            n for n in ("reward_critic", "cost_critic") if not getattr(self, n).options.get("steps_left")
        ]
        require(
            self.early_ends == 0 or not blind,
            f"early_ends is {self.early_ends}, so the critics need the option steps_left; {', '.join(blind)} lack it",
        )
        self._check_resolutions()

    def _check_resolutions(self) -> None:
        if self.denoiser.name != "temporal_unet":
            return
        halvings = len(self.denoiser.options.get("dim_mults", (1, 2, 4, 8))) - 1
        require(
            self.horizon % 2**halvings == 0,
            f"the U-Net halves the horizon {halvings} times, so it must divide by {2**halvings}; got {self.horizon}",
        )

    def training_of(self, part: str) -> TrainingConfig:
        """Return how a model is optimised: the denoiser, which is the part ``diffusion``, or a critic."""
        if part == "outcome_critic" and self.outcome_training is not None:
            return self.outcome_training
        return self.denoiser_training if part == "diffusion" else self.critic_training

    def replace(self, **changes: Any) -> TREBIConfig:
        """Return a copy with these fields changed; ``planner`` and the training parts also take a dict of changes.

        Raises:
            ConfigError: a field is not known, or the result cannot work.
        """
        resolved = {}
        for name, value in changes.items():
            current = getattr(self, name, None)
            if (
                isinstance(value, Mapping)
                and dataclasses.is_dataclass(current)
                and not isinstance(current, type)
            ):
                known(type(current), value)
                value = dataclasses.replace(current, **value)
            resolved[name] = value
        known(TREBIConfig, resolved)
        return dataclasses.replace(self, **resolved)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, from which ``from_dict`` makes the same configuration again."""
        data: dict[str, Any] = plain(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TREBIConfig:
        """Make a configuration from ``to_dict``'s result.

        Raises:
            ConfigError: an unknown field, a value of the wrong type, or one that cannot work.
        """
        if isinstance(data, Mapping):
            # a file holds every field that there was when it was written; what it lacks was as _ADDED says
            if set(data) >= _FIRST_FIELDS:
                data = {**_ADDED, **data}
            planner = data.get("planner")
            if isinstance(planner, Mapping) and set(planner) >= _FIRST_PLANNER_FIELDS:
                data = {**data, "planner": {**_ADDED_TO_PLANNER, **planner}}
        return build(cls, data, "config")


# the fields of the first saved agents, by which their files are told from a dictionary of a few changes
_FIRST_FIELDS = {
    "preset",
    "horizon",
    "denoiser",
    "reward_critic",
    "cost_critic",
    "critic_training",
    "planner",
}
_FIRST_PLANNER_FIELDS = {"candidates", "sampler", "sampler_steps", "guide_type", "ranking", "budget_rule"}
_ADDED: dict[str, Any] = {"outcome_critic": None, "outcome_training": None}
_ADDED_TO_PLANNER: dict[str, Any] = {"retry_steps": None}

"""The running text of the results page: what was measured and how, and the commands that do it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.presets import preset
from trebi_gym.result_plan import (
    CALIBRATION_EPISODES,
    EPISODES,
    FIRST_SEED,
    REDUCED_EPISODES,
    RISKS,
    SEED_STEP,
    SEEDS,
    TASKS,
    TIMED_RATIO,
    reduced_paper,
)


def _own_ways(outdated: Mapping[str, str]) -> str:
    """Return a list of the tasks that are calibrated in a way of their own, or whose cells are of another configuration."""
    ways: dict[str, str] = {}
    for name, task in TASKS.items():
        if name in outdated:
            ways[name] = (
                f"**cells of an earlier configuration** ({outdated[name]}). With its agents moved away, `--redo` "
                "computes them anew."
            )
        elif task.planned_ratios is not None:
            ratios = ", ".join(f"{ratio:g}" for ratio in task.planned_ratios)
            ways[name] = (
                f"{_as_named(preset(task.preset))}, {task.calibration_episodes} episodes under "
                f"each of {len(task.planned_ratios)} planned budgets, of ratios {ratios}: {task.planned_because}."
            )
    return "".join(f"\n    - {' and '.join(names)}: {way}" for way, names in grouped(ways).items())


def _as_named(config: TREBIConfig) -> str:
    """Return how a configuration plans otherwise than the preset that it was made of."""
    named = vars(preset(str(config.preset)).planner)
    changed = [f"{name}={value}" for name, value in vars(config.planner).items() if value != named[name]]
    return f"planning with `{', '.join(changed)}`" if changed else "the preset as it is"


def grouped(items: dict[Any, Any]) -> dict[Any, list[Any]]:
    """Return the keys of equal values together."""
    found: dict[Any, list[Any]] = {}
    for key, value in items.items():
        found.setdefault(tuple(value) if isinstance(value, list) else value, []).append(key)
    return found


def introduction(there: int, wanted: int, outdated: Mapping[str, str]) -> str:
    """Return the page's beginning, for so many cells of those that are wanted; and which tasks' are of another version."""
    small = reduced_paper()
    risks = " and ".join(f"{risk:g}" for risk in RISKS)
    paper = "The paper's networks and sampler"
    return f"""# Results

This page is written by `make results` from measured cells, one for each task, method, training seed and budget.
{there} of {wanted} cells are there; what is not measured is left empty in the tables and [listed](#not-measured).

- **Budgets** are ratio x the data's maximum budget, undiscounted cost of a whole episode.
- **Episodes**: {EPISODES} for each of {len(SEEDS)} training seeds, so {len(SEEDS) * EPISODES} in all. Training seed s is
  run on the environment seeds from {FIRST_SEED} + {SEED_STEP} s on, which are the same for every method.
- **default** is the preset `fast`, and `fast_long` for the hopper, the walker and the cheetah. *Calibrated* agents were
  calibrated in closed loop, at risk {risks}, on episodes of other seeds, {CALIBRATION_EPISODES} under each planned
  budget; *uncalibrated* ones are the same agents before that.{_own_ways(outdated)}
- **{paper}** (arXiv 2306.00603) plan for seconds a decision on a CPU. Budgets are counted and plans ranked as the
  original does.
  *Reduced*: {REDUCED_EPISODES} episodes of one training seed on the pendulum, learned for
  {small.denoiser_training.steps:,} updates of the trajectory model and {small.critic_training.steps:,} of each critic, of
  {small.denoiser_training.batch_size} windows (published: 200,000 of 2 x 32), with {small.planner.candidates} candidates
  (published: 128), and with {small.planner.control_interval} actions of each plan executed (published: 1), which
  may cost it a few percent of its return.
  *Full size* is as published, and needs a GPU.
- **Cloning** is a network of two layers, learned by mean squared error on the episodes in the data whose cost is within
  the budget, one for each budget; it is deterministic.
- **Best episode** is the one of the greatest return in the data whose cost is within the budget; nothing is run.
- **return, cost**: mean with 95% bootstrap interval over all episodes, training seeds together. **share over**: of the
  episodes that cost more than the budget. **worst excess**: the most by which one did.
- **ms**: median milliseconds of a decision with one environment and one thread, under the budget at ratio
  {TIMED_RATIO:g}, timed apart from the episodes, in a run of a few decisions. Where several actions of a plan are executed,
  its time is spread over them.

**When the promise does not hold.** A certificate speaks of episodes that are drawn as those of the calibration were:
another system, other starts, wear, or a budget that changes in mid-episode are not covered, and nothing notices the
first three. It holds with 95% confidence for each agent, so one agent in twenty may be certified wrongly; what 60
episodes show of it is uncertain again, which the targets below allow for. Budgets below the smallest that is
certified are planned for as well as can be, and marked. The page on [risk](risk.md) has the whole list, that on [the
critics](critics.md) what plans predicted against what episodes cost, and [how `fast` was chosen](fast.md) what was
tried and lost."""


TIMES = """## How long each part took

Wall time of all parts of a kind together, with their number in brackets; methods: running their episodes, and for
cloning learning too; episodes that two risks plan for alike are run once. Parts that ran at the same time slowed each
other down. Of a part that was interrupted and gone on with, only the last stretch is counted: it is marked with ≥. Data:
the steps recorded, at the rate that the data set tells.
An empty field is a part that was not run here, such as the learning of agents that were there already."""


def commands() -> str:
    """Return how the page is made, whole and in parts."""
    generated = "\n".join(
        f"trebi generate --dataset {task.env_id} --datatype medium-replay --algo {task.algo} --total-step {task.total_step}"
        for name, task in TASKS.items()
        if name != "pendulum"
    )
    return f"""## Do it again

```bash
make results
```

makes everything, and goes on where it was stopped: what is in `runs/results` already is kept. In parts, which may run at
the same time on different tasks:

```bash
python -m trebi_gym.results --tasks pendulum
python -m trebi_gym.results --tasks hopper --stages data learn
python -m trebi_gym.results --tasks hopper --stages calibrate evaluate --methods calibrated-0.05 calibrated-0.2
python -m trebi_gym.results --stages time page
python -m trebi_gym.results --page-only
```

Every episode of this page is in [results-cells.json.gz](results-cells.json.gz). To go on from there on another machine:

```bash
python -m trebi_gym.results --unpack docs/results-cells.json.gz --page-only
```

A cell of another agent, planner, data set or number of episodes is refused; `--redo` computes it anew. The data, which the
stage `data` builds where they are not there yet (the pendulum's ship). A training run rounds differently on another
processor, and its episodes then are others, so carry the file along to go on with such a task elsewhere:

```bash
{generated}
```"""

"""What a data set or a saved agent holds, for people."""

from __future__ import annotations

from pathlib import Path

from trebi_gym.agents import TREBIAgent
from trebi_gym.datasets import load, resolve
from trebi_gym.datasets.recipes import maximum_budget


def describe_dataset(name_or_path: str) -> str:
    """Return what a data set holds, for people."""
    episodes = load(name_or_path)
    returns, costs = episodes.episode_returns, episodes.episode_costs
    budget = maximum_budget(episodes)
    lines = [
        repr(episodes),
        f"file           {resolve(name_or_path)}",
        f"environment    {episodes.metadata.get('env_id', 'not recorded')}",
        f"made by        {episodes.metadata.get('algorithm', 'not recorded')}, seed {episodes.metadata.get('seed')}",
        f"episodes       {len(episodes)}, of {episodes.lengths.min()} to {episodes.lengths.max()} steps; "
        f"{int(episodes.terminated.sum())} ended by the task",
        f"return         mean {returns.mean():.2f}, {returns.min():.2f} to {returns.max():.2f}",
        f"cost           mean {costs.mean():.2f}, {costs.min():.2f} to {costs.max():.2f}",
        f"maximum budget {budget.value:.4g} ({budget.rule})",
    ]
    for ratio in (0.2, 0.4, 0.6, 0.8, 1.0):
        within = costs <= ratio * budget.value
        best = f"best return {returns[within].max():.1f}" if within.any() else "none"
        lines.append(
            f"  ratio {ratio:.1f}    {int(within.sum())} episodes within {ratio * budget.value:.4g}, {best}"
        )
    return "\n".join(lines)


def describe_agent(path: Path) -> str:
    """Return what a saved agent is, for people."""
    agent = TREBIAgent.load(path)
    assert agent.task is not None
    planner = agent.config.planner
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in agent.models.items()}
    learned = agent.learned_from
    return "\n".join(
        [
            repr(agent),
            f"learned from   {learned.get('name')} ({learned.get('episodes')} episodes, {learned.get('steps')} steps)",
            f"environment    {learned.get('env_id')}, {agent.task.episode_length} steps an episode",
            f"horizon        {agent.config.horizon} steps, {agent.config.diffusion_steps} noise levels",
            *(f"{name:<14} {count:,} parameters" for name, count in parameters.items()),
            f"planner        {planner.candidates} candidates, {planner.sampler} with "
            f"{planner.sampler_steps or agent.config.diffusion_steps} steps, {planner.guide_moves} guided moves each",
            f"budgets        rule {planner.budget_rule!r}, costs discounted by {agent.config.cost_discount}",
        ]
    )

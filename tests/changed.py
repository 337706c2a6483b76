"""Agents that know something else than they learned."""

import dataclasses

from trebi_gym.agents import TREBIAgent


def changed(agent: TREBIAgent, **values) -> TREBIAgent:
    """Return an agent whose state has these values, and is otherwise that of another."""
    return TREBIAgent.from_state(dataclasses.replace(agent.state, **values), device=agent.device)

"""From an observation and a budget to an action."""

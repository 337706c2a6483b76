"""What the agent is compared with."""

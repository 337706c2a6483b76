"""Diffusion over trajectories: pure numerics that know no network and no environment."""

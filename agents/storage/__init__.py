"""Agents to and from files."""

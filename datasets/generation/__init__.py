"""Building data sets: from training runs, and from policies."""

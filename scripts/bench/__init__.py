"""The timings of ``make bench``."""

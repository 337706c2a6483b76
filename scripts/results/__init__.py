"""The experiment harness of ``make results``."""

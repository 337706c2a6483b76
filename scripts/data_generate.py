"""Record a data set, with the original's flags: --dataset, --datatype, --total_step."""

import tyro

from trebi_gym.cli import generate
from trebi_gym.terminal import run

if __name__ == "__main__":
    run(lambda: tyro.cli(generate))

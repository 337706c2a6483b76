"""Record a data set, with the original's flags: --dataset, --datatype, --total_step."""

import tyro

from trebi_gym.commands.common import run
from trebi_gym.commands.generate import generate

if __name__ == "__main__":
    run(lambda: tyro.cli(generate))

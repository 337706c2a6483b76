"""Learn the critic of finished plans, which config.fast has, into the agent folder: --dataset NAME --config config.fast."""

import tyro

from trebi_gym.commands.common import run
from trebi_gym.commands.paper_stages import StageArguments, train_stage

if __name__ == "__main__":
    run(lambda: train_stage("outcome_critic", tyro.cli(StageArguments, description=__doc__)))

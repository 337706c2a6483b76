"""Learn the critic of the reward to come into the agent folder: --dataset NAME --config config.toy_safe_env."""

import tyro

from trebi_gym.commands.common import run
from trebi_gym.commands.paper_stages import StageArguments, train_stage

if __name__ == "__main__":
    run(lambda: train_stage("reward_critic", tyro.cli(StageArguments, description=__doc__)))

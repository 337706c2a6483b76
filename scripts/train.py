"""Learn the trajectory model into the agent folder: --dataset NAME --config config.toy_safe_env."""

import tyro

from trebi_gym.stages import StageArguments, train_stage
from trebi_gym.terminal import run

if __name__ == "__main__":
    run(lambda: train_stage("diffusion", tyro.cli(StageArguments, description=__doc__)))

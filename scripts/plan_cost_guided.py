"""Plan within a budget: --ratio_of_maxthreshold 0.2, --random_budget 1, --control_interval 2."""

import tyro

from trebi_gym.commands.common import run
from trebi_gym.commands.paper_stages import PlanArguments, plan_stage

if __name__ == "__main__":
    run(lambda: plan_stage(tyro.cli(PlanArguments, description=__doc__)))

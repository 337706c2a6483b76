"""The noise schedule has the original's coefficients."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trebi_gym.agents.diffusion.schedule import NoiseSchedule

RECORDED = load_file(Path(__file__).parents[1] / "data" / "schedules.safetensors")


@pytest.mark.parametrize("entry", sorted(RECORDED))
def test_a_coefficient_is_that_of_the_original(entry):
    steps, name = entry.split(".")
    schedule = NoiseSchedule.cosine(int(steps.removeprefix("T")))
    # Relative for the coefficients of size 100 to 2,000, whose last bit is worth more than 1e-5.
    torch.testing.assert_close(getattr(schedule, name), RECORDED[entry], atol=1e-5, rtol=1e-6)


def test_every_coefficient_of_the_schedule_was_recorded():
    recorded = {entry.split(".")[1] for entry in RECORDED}
    assert recorded == set(NoiseSchedule.__dataclass_fields__)

"""The noise schedule and the losses that are built on it."""

import pytest
import torch

from trebi_gym.agents.diffusion.denoising import (
    add_noise,
    critic_loss,
    denoising_loss,
    loss_weights,
    pin_first_observation,
    posterior,
)
from trebi_gym.agents.diffusion.schedule import NoiseSchedule


def same(x):
    return x


@pytest.mark.parametrize("n_steps", [1, 2, 5, 20, 1000])
def test_noise_grows_and_every_coefficient_is_finite(n_steps):
    schedule = NoiseSchedule.cosine(n_steps)
    assert schedule.n_steps == n_steps
    assert (schedule.alphas_cumprod.diff() < 0).all()
    for name in NoiseSchedule.__dataclass_fields__:
        values = getattr(schedule, name)
        assert values.shape == (n_steps,)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all(), name


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step, got 0"):
        NoiseSchedule.cosine(0)


def test_moving_a_schedule_keeps_its_numbers():
    schedule = NoiseSchedule.cosine(5)
    moved = schedule.to("cpu")
    assert moved.device == torch.device("cpu")
    assert torch.equal(moved.posterior_mean_coef1, schedule.posterior_mean_coef1)


def test_noise_keeps_the_variance_of_unit_data():
    schedule = NoiseSchedule.cosine(20)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(20, 100, 50, generator=generator)
    noisy = add_noise(schedule, x0, torch.arange(20), torch.randn(x0.shape, generator=generator))
    torch.testing.assert_close(noisy.var(dim=(1, 2)), torch.ones(20), atol=0.06, rtol=0)


def test_the_posterior_of_the_last_step_is_the_predicted_trajectory():
    schedule = NoiseSchedule.cosine(20)
    x0, x_t = torch.ones(2, 3, 4), torch.full((2, 3, 4), 9.0)
    mean, log_variance = posterior(schedule, x0, x_t, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(mean, x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_variance, torch.full((2, 1, 1), 1e-20).log())


def test_pinning_sets_the_first_observation_alone_and_copies():
    x = torch.zeros(2, 3, 4, requires_grad=True)
    pinned = pin_first_observation(x, torch.tensor([[1.0, 2.0, 3.0]]), action_dim=1)
    assert pinned[:, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert not pinned[:, 1:].any()
    assert not x.any()
    pinned.sum().backward()
    assert x.grad[:, 0].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert (x.grad[:, 1:] == 1).all()


def test_weights_are_ten_for_the_first_action_and_one_elsewhere():
    assert loss_weights(2, 1, 3).tolist() == [[10, 1, 1], [1, 1, 1]]


def test_the_loss_weighs_the_first_action_and_reports_it_unweighted():
    schedule = NoiseSchedule.cosine(5)
    x0 = torch.zeros(2, 2, 3)
    loss, first_action = denoising_loss(
        lambda x, t: torch.ones_like(x),
        schedule,
        x0,
        torch.tensor([0, 4]),
        torch.ones_like(x0),
        lambda x: pin_first_observation(x, torch.zeros(1, 2), 1),
        loss_weights(2, 1, 3),
        action_dim=1,
    )
    assert loss.item() == pytest.approx((10 + 0 + 0 + 3) / 6)
    assert first_action.item() == 1


def test_rows_that_the_mask_leaves_out_do_not_count():
    schedule = NoiseSchedule.cosine(5)
    x0 = torch.zeros(1, 4, 2)
    error = torch.tensor([1.0, 2.0, 100.0, 100.0])[None, :, None].expand(1, 4, 2)

    def loss_of(mask):
        loss, _ = denoising_loss(
            lambda x, t: error,
            schedule,
            x0,
            torch.tensor([2]),
            x0,
            same,
            torch.ones(4, 2),
            mask,
            action_dim=1,
        )
        return loss.item()

    assert loss_of(torch.tensor([[True, True, False, False]])) == pytest.approx((1 + 4) / 2)
    assert loss_of(torch.ones(1, 4, dtype=torch.bool)) == pytest.approx(loss_of(None))
    assert loss_of(torch.zeros(1, 4, dtype=torch.bool)) == 0


def test_the_denoiser_reads_pinned_trajectories():
    schedule = NoiseSchedule.cosine(5)
    seen = []

    def denoise(x, t):
        seen.append(x)
        return x

    x0 = torch.zeros(1, 2, 3)
    observation = torch.tensor([[7.0, 8.0]])
    denoising_loss(
        denoise,
        schedule,
        x0,
        torch.tensor([4]),
        torch.ones_like(x0),
        lambda x: pin_first_observation(x, observation, 1),
        torch.ones(2, 3),
        action_dim=1,
    )
    assert seen[0][:, 0, 1:].equal(observation)


def test_the_critic_loss_is_the_mean_squared_error_and_passes_the_steps_left():
    schedule = NoiseSchedule.cosine(5)
    x0, t = torch.zeros(2, 3, 4), torch.tensor([1, 2])

    def critic(x, t, steps_left=None):
        return x.sum(dim=(1, 2)) + (0.0 if steps_left is None else steps_left)

    def loss_of(steps_left):
        return critic_loss(critic, schedule, x0, t, x0, torch.tensor([1.0, 3.0]), same, steps_left).item()

    assert loss_of(None) == pytest.approx((1 + 9) / 2)
    assert loss_of(torch.tensor([1.0, 3.0])) == 0

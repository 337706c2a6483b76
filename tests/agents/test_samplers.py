"""The samplers, on denoisers that are known in closed form."""

from functools import partial

import pytest
import torch

from trebi_gym.agents.diffusion.denoising import pin_first_observation
from trebi_gym.agents.diffusion.guidance import BudgetGuide
from trebi_gym.agents.diffusion.samplers import SAMPLERS, Guidance, ddim, ddim_steps, ddpm, dpm_solver
from trebi_gym.agents.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.cosine(20)
SHAPE = (4, 6, 3)


def same(x):
    return x


def drawer(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def gaussian_denoiser(mean, deviation, schedule=SCHEDULE):
    """The best prediction of x0 where every entry of the data is normal: E[x0 | x_t]."""

    def denoise(x, t):
        kept = schedule.alphas_cumprod[t][:, None, None]
        return (mean * (1 - kept) + deviation**2 * kept.sqrt() * x) / (1 - kept + kept * deviation**2)

    return denoise


def quadratic_guide(rows, budget):
    return BudgetGuide(
        lambda x, t: -((x - 1) ** 2).sum(dim=(1, 2)),
        lambda x, t: (x**2).sum(dim=(1, 2)),
        torch.full((rows,), budget),
        cost_weight=2.0,
    )


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_gives_pinned_plans_of_the_shape_and_one_score_a_plan(name):
    observation = torch.tensor([[4.0, 5.0]])
    x, scores = SAMPLERS[name](
        gaussian_denoiser(0.0, 1.0),
        SCHEDULE,
        SHAPE,
        guide=quadratic_guide(4, 10.0),
        pin=lambda x: pin_first_observation(x, observation, 1),
        draw_noise=drawer(),
    )
    assert x.shape == SHAPE
    assert not x.requires_grad
    assert (x[:, 0, 1:] == observation).all()
    assert scores.rewards.shape == scores.costs.shape == (4,)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_same_generator_state_gives_the_same_plans(name):
    def draw(seed):
        x, _ = SAMPLERS[name](
            gaussian_denoiser(0.0, 1.0), SCHEDULE, SHAPE, guide=None, pin=same, draw_noise=drawer(seed)
        )
        return x

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_without_a_guide_there_are_no_scores(name):
    _, scores = SAMPLERS[name](
        gaussian_denoiser(0.0, 1.0), SCHEDULE, SHAPE, guide=None, pin=same, draw_noise=drawer()
    )
    assert scores is None


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_guide_raises_the_reward_and_lowers_a_cost_that_is_over_the_budget(name):
    def end(guide):
        x, _ = SAMPLERS[name](
            gaussian_denoiser(0.0, 1.0), SCHEDULE, (64, 6, 3), guide=guide, pin=same, draw_noise=drawer()
        )
        return (x - 1).square().sum(dim=(1, 2)).mean(), x.square().sum(dim=(1, 2)).mean()

    far, cost = end(None)
    far_guided, _ = end(quadratic_guide(64, torch.inf))
    _, cost_guided = end(quadratic_guide(64, 0.0))
    assert far_guided < far
    assert cost_guided < cost


@pytest.mark.parametrize("n_steps", [5, 20])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_recovers_data_that_are_a_single_point(n_steps, eta):
    x, _ = ddim(
        lambda x, t: torch.full_like(x, 3.0),
        SCHEDULE,
        SHAPE,
        guide=None,
        pin=same,
        draw_noise=drawer(),
        n_steps=n_steps,
        eta=eta,
    )
    torch.testing.assert_close(x, torch.full(SHAPE, 3.0))


@pytest.mark.parametrize("sampler", [ddpm, ddim, partial(ddim, eta=1.0)])
def test_a_perfect_denoiser_of_gaussian_data_gives_their_mean_and_spread(sampler):
    # Many steps: with few, the spread comes out too small.
    schedule = NoiseSchedule.cosine(200)
    denoise = gaussian_denoiser(1.5, 0.5, schedule)
    x, _ = sampler(denoise, schedule, (4000, 2, 2), guide=None, pin=same, draw_noise=drawer())
    assert x.mean().item() == pytest.approx(1.5, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("n_diffusion_steps", [1, 5, 20, 100])
def test_ddim_with_all_steps_and_eta_one_is_ddpm(n_diffusion_steps):
    schedule = NoiseSchedule.cosine(n_diffusion_steps)

    def sample(sampler):
        return sampler(
            lambda x, t: 0.5 * torch.tanh(x) + 0.1,
            schedule,
            SHAPE,
            guide=quadratic_guide(4, 4.0),
            pin=lambda x: pin_first_observation(x, torch.ones(1, 2), 1),
            draw_noise=drawer(),
            n_steps=n_diffusion_steps,
        )

    x, scores = sample(ddpm)
    x_ddim, scores_ddim = sample(partial(ddim, eta=1.0))
    torch.testing.assert_close(x_ddim, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores_ddim.costs, scores.costs, atol=1e-3, rtol=1e-4)


def test_ddpm_draws_the_initial_noise_and_then_one_a_step_and_ddim_only_the_initial():
    drawn = []

    def draw(shape):
        drawn.append(shape)
        return torch.zeros(shape)

    denoise = gaussian_denoiser(0.0, 1.0)
    ddpm(denoise, SCHEDULE, SHAPE, guide=None, pin=same, draw_noise=draw)
    assert drawn == [SHAPE] * 21
    drawn.clear()
    ddim(denoise, SCHEDULE, SHAPE, guide=None, pin=same, draw_noise=draw, n_steps=5)
    assert drawn == [SHAPE]


class CountingGuide:
    """A guide that moves nothing and notes the steps at which it was asked."""

    def __init__(self):
        self.guided, self.scored = [], []
        self.inner = quadratic_guide(SHAPE[0], 1.0)

    def __call__(self, x, t):
        self.guided.append(t[0].item())
        return self.inner(x, t)

    def scores(self, x, t):
        self.scored.append(t[0].item())
        return self.inner.scores(x, t)


@pytest.mark.parametrize("score", [True, False])
def test_no_gradient_is_computed_below_the_step_where_guidance_stops(score):
    guide = CountingGuide()
    _, scores = ddim(
        gaussian_denoiser(0.0, 1.0),
        SCHEDULE,
        SHAPE,
        guide=guide,
        pin=same,
        draw_noise=drawer(),
        guidance=Guidance(moves=2, stop_below=6, score=score),
        n_steps=5,
    )
    assert guide.guided == [19, 19, 14, 14, 10, 10]
    assert guide.scored == ([0] if score else [])
    assert (scores is not None) == score


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_scores_are_those_of_the_last_evaluation_even_with_no_moves(name):
    guide = CountingGuide()
    _, scores = SAMPLERS[name](
        gaussian_denoiser(0.0, 1.0),
        SCHEDULE,
        SHAPE,
        guide=guide,
        pin=same,
        draw_noise=drawer(),
        guidance=Guidance(moves=0),
    )
    assert guide.guided == []
    assert guide.scored[-1] == 0
    assert scores is not None


def test_ddim_steps_are_even_and_include_both_ends():
    assert ddim_steps(20, 5) == [19, 14, 10, 5, 0]
    assert ddim_steps(20, 20) == list(reversed(range(20)))
    assert ddim_steps(20, 1) == [19]


@pytest.mark.parametrize("n_steps", [0, 21])
def test_ddim_refuses_a_number_of_steps_that_the_schedule_does_not_have(n_steps):
    with pytest.raises(ValueError, match=f"1 to 20 steps .* got n_steps={n_steps}"):
        ddim_steps(20, n_steps)


def test_ddpm_refuses_to_take_fewer_steps():
    with pytest.raises(ValueError, match="use ddim for fewer"):
        ddpm(same, SCHEDULE, SHAPE, guide=None, pin=same, draw_noise=drawer(), n_steps=5)


def test_a_negative_eta_is_refused():
    with pytest.raises(ValueError, match="eta must not be negative"):
        ddim(same, SCHEDULE, SHAPE, guide=None, pin=same, draw_noise=drawer(), eta=-1.0)


def test_dpm_solver_is_of_second_order_and_ddim_of_first():
    mean, deviation, schedule = 1.5, 0.5, NoiseSchedule.cosine(200)
    denoise = gaussian_denoiser(mean, deviation, schedule)

    def sample(sampler, n_steps):
        x, _ = sampler(
            denoise, schedule, (64, 2, 2), guide=None, pin=same, draw_noise=drawer(), n_steps=n_steps
        )
        return x

    # one or two steps leave nothing to extrapolate from
    for n_steps in (1, 2):
        assert torch.equal(sample(dpm_solver, n_steps), sample(ddim, n_steps))
    # without noise the path of normal data is known: a plan keeps its distance from the mean, in standard deviations
    noise = drawer()((64, 2, 2))
    kept = schedule.alphas_cumprod[-1]
    spread = (kept * deviation**2 + 1 - kept).sqrt()
    exact = mean + deviation * (noise - kept.sqrt() * mean) / spread
    for n_steps, ratio in ((50, 0.4), (200, 0.01)):
        first, second = ((sample(s, n_steps) - exact).abs().mean() for s in (ddim, dpm_solver))
        assert second < ratio * first


def test_dpm_solver_refuses_more_steps_than_there_are():
    with pytest.raises(ValueError, match="1 to 20 steps"):
        dpm_solver(same, SCHEDULE, SHAPE, guide=None, pin=same, draw_noise=drawer(), n_steps=21)

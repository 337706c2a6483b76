"""The networks: shapes over the registry, what they refuse, and that they read what they are given."""

import pytest
import torch

from trebi_gym.agents.networks import (
    CRITICS,
    DENOISERS,
    NETWORKS,
    MLPCritic,
    MLPDenoiser,
    TemporalCritic,
    TemporalUnet,
    make_critic,
    make_denoiser,
)
from trebi_gym.agents.networks.embeddings import MAX_STEPS, StepTable, sinusoidal

SMALL = {
    "temporal_unet": {"dim": 8},
    "temporal": {"dim": 8},
    "mlp": {"width": 16},
}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def batch(rows=3, horizon=8, transition_dim=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, horizon, transition_dim, generator=generator), torch.arange(rows)


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_a_denoiser_keeps_the_shape(name):
    x, t = batch()
    network = make_denoiser(name, horizon=8, transition_dim=5, **SMALL[name])
    assert network(x, t).shape == x.shape


@pytest.mark.parametrize("steps_left", [False, True])
@pytest.mark.parametrize("name", sorted(CRITICS))
def test_a_critic_gives_one_number_a_row_and_a_finite_gradient(name, steps_left):
    x, t = batch()
    options = SMALL[name] | {"steps_left": steps_left, "episode_length": 10}
    network = make_critic(name, horizon=8, transition_dim=5, **options)
    x.requires_grad_()
    out = network(x, t, torch.tensor([10, 5, 1]))
    assert out.shape == (3,)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", ["critic", "denoiser"])
def test_rows_do_not_influence_each_other(kind):
    x, t = batch()
    for name, network_class in NETWORKS[kind].items():
        network = network_class(8, 5, **SMALL[name])
        torch.testing.assert_close(network(x, t)[1:2], network(x[1:2], t[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["critic", "denoiser"])
def test_a_step_expanded_over_the_rows_gives_what_the_same_step_in_every_row_gives(kind):
    x, _ = batch()
    for name, network_class in NETWORKS[kind].items():
        network = network_class(8, 5, **SMALL[name])
        expanded = network(x, torch.tensor([4]).expand(3))
        torch.testing.assert_close(expanded, network(x, torch.tensor([4, 4, 4])), atol=1e-5, rtol=1e-5)
        assert not torch.equal(expanded, network(x, torch.tensor([2, 2, 2])))


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_rows_without_a_condition_are_the_unconditional_ones_and_train_without_nan(name):
    x, t = batch()
    network = make_denoiser(name, horizon=8, transition_dim=5, condition=True, **SMALL[name])
    # The null token starts at zero, so it is set apart from the embedding of any number.
    torch.nn.init.normal_(network.condition_mlp.null)
    out = network(x, t, torch.tensor([0.5, float("nan"), float("inf")]))
    none = network(x, t)
    torch.testing.assert_close(out[1:], none[1:])
    assert not torch.allclose(out[0], none[0])
    out.square().mean().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_a_denoiser_built_without_a_condition_refuses_one(name):
    x, t = batch()
    network = make_denoiser(name, horizon=8, transition_dim=5, **SMALL[name])
    with pytest.raises(ValueError, match="condition=False"):
        network(x, t, torch.zeros(3))


@pytest.mark.parametrize("name", sorted(CRITICS))
def test_a_critic_that_reads_the_steps_left_needs_them_and_uses_them(name):
    x, t = batch()
    with pytest.raises(ValueError, match="episode_length"):
        make_critic(name, horizon=8, transition_dim=5, steps_left=True, **SMALL[name])
    network = make_critic(
        name, horizon=8, transition_dim=5, steps_left=True, episode_length=10, **SMALL[name]
    )
    with pytest.raises(ValueError, match="pass steps_left"):
        network(x, t)
    assert not torch.equal(network(x, t, torch.full((3,), 10)), network(x, t, torch.full((3,), 1)))


@pytest.mark.parametrize("name", sorted(CRITICS))
def test_a_critic_that_is_blind_to_the_steps_left_ignores_them(name):
    x, t = batch()
    network = make_critic(name, horizon=8, transition_dim=5, **SMALL[name])
    assert torch.equal(network(x, t), network(x, t, torch.ones(3)))


@pytest.mark.parametrize("dim_mults", [(1,), (1, 2), (1, 2, 4), (1, 2, 4, 8, 8)])
@pytest.mark.parametrize("horizon", [1, 4, 7, 32, 50, 128])
def test_the_critic_can_be_built_for_any_horizon_and_resolutions(horizon, dim_mults):
    critic = TemporalCritic(horizon, 5, dim=8, dim_mults=dim_mults)
    assert critic(torch.zeros(2, horizon, 5), torch.zeros(2, dtype=torch.long)).shape == (2,)


def test_the_unet_refuses_a_horizon_that_its_downsampling_does_not_divide():
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        TemporalUnet(12, 5, dim=8)
    x, t = batch(horizon=12)
    assert TemporalUnet(12, 5, dim=8, dim_mults=(1, 2, 4))(x, t).shape == x.shape


@pytest.mark.parametrize("make", [make_denoiser, make_critic])
def test_an_unknown_network_or_option_is_refused_with_the_known_ones(make):
    with pytest.raises(ValueError, match=r"no_such.*known: mlp, temporal"):
        make("no_such", horizon=8, transition_dim=5)
    with pytest.raises(ValueError, match="takes no colour, wdith; its options: width, blocks"):
        make("mlp", horizon=8, transition_dim=5, wdith=3, colour=1)


@pytest.mark.parametrize("network_class", [MLPDenoiser, MLPCritic])
def test_an_mlp_without_blocks_is_refused(network_class):
    with pytest.raises(ValueError, match="from 1 to 256 blocks, got 256 and 0"):
        network_class(8, 5, blocks=0)


@pytest.mark.parametrize("dim", [2, 7])
def test_a_width_that_sines_and_cosines_cannot_split_is_refused(dim):
    with pytest.raises(ValueError, match="even width of at least 4"):
        TemporalUnet(8, 5, dim=dim, dim_mults=(1, 2))


def test_the_step_table_is_the_sinusoidal_embedding_and_no_checkpoint_stores_it():
    table = StepTable(8)
    t = torch.tensor([0, 3, MAX_STEPS - 1])
    torch.testing.assert_close(table(t), sinusoidal(t, 8))
    assert not table.state_dict()


def test_the_sinusoidal_embedding_of_step_one_has_known_values():
    expected = torch.tensor([[0.841471, 1e-4, 0.540302, 1.0]])
    torch.testing.assert_close(sinusoidal(torch.tensor([1]), 4), expected, atol=1e-6, rtol=0)


def test_the_same_seed_builds_the_same_network():
    torch.manual_seed(3)
    first = MLPDenoiser(8, 5, width=16)
    torch.manual_seed(3)
    second = MLPDenoiser(8, 5, width=16)
    x, t = batch()
    assert torch.equal(first(x, t), second(x, t))

"""The copies that plan: they compute what the trained networks compute, and leave these alone."""

import copy

import pytest
import torch
from torch import nn

from trebi_gym.agents.networks import MLPCritic, MLPDenoiser, TemporalCritic, TemporalUnet
from trebi_gym.agents.networks.fast_inference import SHORT, Mish, ShortConv, for_inference, pair


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def value_and_gradient(network, x, *rest):
    x = x.clone().requires_grad_()
    value = network(x, *rest)
    (gradient,) = torch.autograd.grad(value.square().sum(), x)
    return value.detach(), gradient


@pytest.mark.parametrize(
    ("horizon", "network"),
    [
        (32, lambda: TemporalUnet(32, 14)),
        (32, lambda: TemporalUnet(32, 5, dim=16, condition=True)),
        (4, lambda: TemporalUnet(4, 23, dim=32, dim_mults=(1, 4, 8), attention=True)),
        (32, lambda: TemporalCritic(32, 14, dim=8)),
        (7, lambda: TemporalCritic(7, 4, dim=8, dim_mults=(1, 2), steps_left=True, episode_length=10)),
        (4, lambda: TemporalCritic(4, 23, dim=8, dim_mults=(1, 4, 8))),
        (1, lambda: TemporalCritic(1, 3, dim=8, dim_mults=(1,))),
        (8, lambda: MLPDenoiser(8, 4, width=16)),
    ],
)
def test_a_copy_for_planning_gives_the_same_values_and_gradients(horizon, network):
    network = network()
    x = torch.randn(6, horizon, network.transition_dim)
    rest = [torch.arange(6)]
    if getattr(network, "steps_left", None):
        rest.append(torch.arange(6) + 1.0)

    def all_of(network, x):
        with torch.no_grad():  # another path through the activation
            value = network(x, *rest)
        return (*value_and_gradient(network, x, *rest), value)

    exact = copy.deepcopy(network).double()
    for layer in (m for m in exact.modules() if isinstance(m, nn.Linear)):  # steps are embedded in float32
        layer.register_forward_pre_hook(lambda layer, given: tuple(value.double() for value in given))
    truth = all_of(exact, x.double())
    for ours, theirs in zip(
        all_of(for_inference(exact, horizon, network.transition_dim), x.double()), truth, strict=True
    ):
        scale = float(theirs.abs().max().clamp(min=1.0))
        torch.testing.assert_close(ours, theirs, atol=1e-12 * scale, rtol=0)
    # in float32 the same but for rounding, and how much that matters depends on the weights: the exact network tells, by
    # what it computes of weights and plans that are each off by as much as a float32 is rounded
    rounded = [torch.zeros_like(value) for value in truth]
    for _ in range(8):
        other = all_of(off_by_rounding(exact), rounded_at_random(x.double()))
        rounded = [
            torch.maximum(most, (o - true).abs()) for most, o, true in zip(rounded, other, truth, strict=True)
        ]
    copied = for_inference(network, horizon, network.transition_dim)
    for ours, true, off in zip(all_of(copied, x), truth, rounded, strict=True):
        scale = float(true.abs().max().clamp(min=1.0))
        allowed = 10 * float(off.max()) + 1e-6 * scale
        torch.testing.assert_close(ours.double(), true, atol=allowed, rtol=0)


def rounded_at_random(values):
    return values * (1 + 2.0**-24 * (2 * torch.rand_like(values) - 1))


def off_by_rounding(network):
    """A copy whose layers' weights and outputs are each off by a float32's rounding."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.copy_(rounded_at_random(parameter))
    for layer in copied.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, given, value: rounded_at_random(value))
    return copied


def test_a_network_is_left_as_it_was_and_its_copy_does_not_follow_it():
    network = TemporalCritic(16, 4, dim=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copied = for_inference(network, 16, 4)
    x, t = torch.randn(2, 16, 4), torch.tensor([0, 3])
    value = copied(x, t)
    assert {type(m) for m in network.modules()}.isdisjoint({Mish, ShortConv})
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network._forward_pre_hooks
    assert not any(m._forward_pre_hooks for m in network.modules())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert torch.equal(copied(x, t), value)


def test_the_copy_uses_the_quick_parts_and_cannot_be_trained():
    copied = for_inference(TemporalUnet(32, 4, dim=8), 32, 4)
    kinds = [type(m) for m in copied.modules()]
    assert Mish in kinds
    assert nn.Mish not in kinds
    assert ShortConv in kinds
    assert nn.Conv1d in kinds  # the long ones, and those of one row
    assert not any(p.requires_grad for p in copied.parameters())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rows", range(1, SHORT + 1))
def test_a_short_convolution_as_a_matrix_is_that_convolution(rows, stride):
    convolution = nn.Conv1d(3, 5, 5 if stride == 1 else 3, stride=stride, padding=2 if stride == 1 else 1)
    x = torch.randn(7, 3, rows)
    torch.testing.assert_close(ShortConv(convolution, rows)(x), convolution(x), atol=1e-5, rtol=1e-5)


def test_mish_and_its_slope_are_right_and_finite_everywhere():
    x = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([-1e30, 1e30, 0.0])]).requires_grad_()
    theirs = nn.functional.mish(x)
    (their_slope,) = torch.autograd.grad(theirs.sum(), x)
    ours = Mish()(x)
    (our_slope,) = torch.autograd.grad(ours.sum(), x)
    with torch.no_grad():
        without = Mish()(x.detach())
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(without, theirs.detach(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(our_slope, their_slope, atol=2e-6, rtol=1e-6)


def critics(steps_left=True, width=16, blocks=3):
    made = [
        MLPCritic(8, 4, width=width, blocks=blocks, steps_left=steps_left, episode_length=50)
        for _ in range(2)
    ]
    with torch.no_grad():
        for critic in made:
            for parameter in critic.parameters():  # gains and shifts too are not 1 and 0 once trained
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("steps_left", [True, False])
@pytest.mark.parametrize("same_step", [True, False])
def test_a_pair_of_critics_predicts_what_the_two_predict(steps_left, same_step):
    first, second = critics(steps_left)
    x, left = torch.randn(9, 8, 4), torch.arange(9.0)
    t = torch.tensor([3]).expand(9) if same_step else torch.arange(9)
    paired = pair(first, second)

    def difference(rewards, costs):
        return rewards - 3 * costs

    ours, our_gradient = value_and_gradient(lambda x, *rest: difference(*paired(x, *rest)), x, t, left)
    theirs, their_gradient = value_and_gradient(
        lambda x, *rest: difference(first(x, *rest), second(x, *rest)), x, t, left
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-4, rtol=1e-4)


def test_critics_that_differ_in_shape_are_not_paired():
    first, _ = critics()
    assert pair(first, critics(width=8)[0]) is None
    assert pair(first, critics(blocks=2)[0]) is None
    assert pair(first, critics(steps_left=False)[0]) is None
    assert pair(first, MLPCritic(8, 4, width=16, blocks=3, steps_left=True, episode_length=60)) is None
    assert pair(TemporalCritic(8, 4, dim=8), TemporalCritic(8, 4, dim=8)) is None

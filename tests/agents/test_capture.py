"""Recordings: replayed on a GPU, called on a CPU, and never trusted when they give something else."""

import contextlib

import numpy as np
import pytest
import torch

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.networks import cuda_graphs as capture
from trebi_gym.agents.networks.cuda_graphs import Recording, Recordings, computing_in

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_on_a_cpu_the_function_is_called_every_time():
    calls = []

    def function(x):
        calls.append(x)
        return (x + 1,)

    recordings = Recordings(function)
    for value in (1.0, 2.0):
        (result,) = recordings(torch.tensor([value]))
        assert result.item() == value + 1
    assert len(calls) == 2


class Graph:
    """Stands in for a CUDA graph: a replay runs the function on the recording's own inputs, into its own outputs."""

    error = 0.0

    def replay(self):
        for kept, value in zip(self.recording._outputs, self.function(*self.recording._inputs), strict=True):
            kept.copy_(value + self.error)


class FromGPU(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    device = torch.device("cuda")


@pytest.fixture
def pretended(monkeypatch):
    """Everything of PyTorch that a recording needs of a GPU, pretended."""

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            pass

    made = []

    def graph():
        made.append(Graph())
        return made[-1]

    plain = Recording.__call__

    def call(self, *inputs):
        self._graph.recording, self._graph.function = self, function
        return plain(self, *inputs)

    def function(x, y):
        return x * y, x.argsort()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(Recording, "__call__", call)
    monkeypatch.setattr(Graph, "error", 0.0)
    return function, made


def tensors(*shape):
    return (torch.rand(*shape).as_subclass(FromGPU), torch.rand(*shape).as_subclass(FromGPU))


def test_a_recording_reads_new_inputs_and_its_results_stay_as_they_are(pretended):
    function, made = pretended
    recordings = Recordings(function)
    first, second = tensors(3), tensors(3)
    results = [recordings(*inputs) for inputs in (first, second)]
    assert len(made) == 1
    for result, inputs in zip(results, (first, second), strict=True):
        for ours, theirs in zip(result, function(*inputs), strict=True):
            assert torch.equal(ours, theirs)
    recordings(*tensors(5))
    assert len(made) == 2


def test_no_more_shapes_are_recorded_than_were_asked_for(pretended):
    function, made = pretended
    recordings = Recordings(function, most=2)
    for size in (1, 2, 3, 4):
        x, y = tensors(size)
        assert torch.equal(recordings(x, y)[0], x * y)
    assert len(made) == 2


def test_a_replay_that_gives_something_else_is_not_used_and_said_to_be(pretended, monkeypatch):
    function, made = pretended
    monkeypatch.setattr(Graph, "error", 0.1)
    recordings = Recordings(function)
    x, y = tensors(3)
    with pytest.warns(RuntimeWarning, match="could not be recorded .*: the replay does not give"):
        assert torch.equal(recordings(x, y)[0], x * y)
    assert torch.equal(recordings(y, y)[0], y * y)  # and is not tried again
    assert len(made) == 1


def test_a_computation_that_cannot_be_recorded_runs_step_by_step_and_says_why(pretended, monkeypatch):
    function, _ = pretended

    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    x, y = tensors(3)
    with pytest.warns(RuntimeWarning, match="operation not permitted when stream is capturing"):
        assert torch.equal(Recordings(function)(x, y)[0], x * y)


def test_bfloat16_is_used_where_it_is_asked_for_and_only_there():
    x = torch.randn(8, 8)
    types = {}
    for precision in ("float32", "tf32", "bfloat16"):
        with computing_in(precision, torch.device("cpu")):
            types[precision] = (x @ x).dtype
    assert types == {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
    assert (x @ x).dtype == torch.float32


def test_flags_of_a_gpu_are_put_back(monkeypatch):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision in ("float32", "tf32"):
        with contextlib.suppress(KeyError), computing_in(precision, torch.device("cuda")):
            now = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert now == (precision == "tf32",) * 2
            raise KeyError
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@GPU
def test_recorded_plans_are_the_plans_that_are_computed_step_by_step(
    tiny_agent, tmp_path, shipped_dataset, recwarn
):
    agent = TREBIAgent.load(tiny_agent.save(tmp_path / "agent.zip"), device="cuda")
    planner, _ = agent._ready()
    budgets, left = np.array([10.0, 30.0]), np.full(2, 200.0)
    plans = []
    for sampled in (planner._sampled, planner._sample):
        planner._sampled = sampled
        generator = torch.Generator(device="cuda").manual_seed(0)
        plans.append(planner.plan(shipped_dataset.observations[:2], budgets, left, generator))
    np.testing.assert_allclose(plans[0].costs, plans[1].costs, atol=1e-3)
    np.testing.assert_allclose(plans[0].rewards, plans[1].rewards, atol=1e-3)
    assert not [w for w in recwarn if "recorded" in str(w.message)]


@GPU
def test_recorded_updates_give_the_weights_of_updates_step_by_step(tiny_config, shipped_dataset, monkeypatch):
    agents = []
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr(capture.Recordings, "__call__", lambda self, *inputs: self._function(*inputs))
        agent = TREBIAgent(config=tiny_config, seed=0, device="cuda")
        agents.append(agent.learn(shipped_dataset, progress_bar=False))
    for part, model in agents[0].models.items():
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, agents[1].models[part].state_dict()[name], atol=1e-3, rtol=1e-3)

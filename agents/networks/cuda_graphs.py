"""Recording a computation once on a GPU, as a CUDA graph, and replaying it: one launch instead of thousands."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
WARM_UPS = 3
TOLERANCE = 1e-3
"""How far a replay may lie from the computation itself, relative to the greatest value, before it is not trusted."""

_DIRECTLY: ContextVar[bool] = ContextVar("computing directly", default=False)


class Recording:
    """A function of tensors, recorded for inputs of these shapes.

    Args:
        function: reads its inputs and nothing that changes between calls; it may differentiate, but must not wait for the
            GPU or draw random numbers.
        inputs: an example; later calls need the same shapes.

    Raises:
        RuntimeError: PyTorch could not record it, or the replay gives something else.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._inputs = [value.clone() for value in inputs]
        device = self._inputs[0].device
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                expected = function(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)
        for ours, theirs in zip(self(*inputs), expected, strict=True):
            if ours.dtype.is_floating_point:
                scale = theirs.abs().max().clamp(min=1.0)
                if not bool((ours - theirs).abs().max() <= TOLERANCE * scale):
                    raise RuntimeError("the replay does not give what the computation gives")

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Replay on these inputs; the results are copies, which the next call leaves alone."""
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value)
        self._graph.replay()
        return tuple(value.clone() for value in self._outputs)


class Recordings:
    """A function that is recorded the first time it meets inputs of new shapes; on a CPU it is just called.

    Where it cannot be recorded it is called as it is, with one warning that says why.

    Args:
        function: as for ``Recording``.
        most: recordings to keep, each with memory of its own; shapes beyond that are not recorded.
    """

    def __init__(self, function: Function, most: int = 16) -> None:
        self._function = function
        self._most = most
        self._recorded: dict[tuple[torch.Size, ...], Recording | None] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the function's results."""
        if _DIRECTLY.get():
            # a recorded function may write to tensors of its own, such as gradients, which this call replaces
            self._recorded.clear()
            return self._function(*inputs)
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        shapes = tuple(value.shape for value in inputs)
        if shapes not in self._recorded and len(self._recorded) < self._most:
            self._recorded[shapes] = self._record(inputs)
        recording = self._recorded.get(shapes)
        return self._function(*inputs) if recording is None else recording(*inputs)

    def _record(self, inputs: Sequence[Tensor]) -> Recording | None:
        try:
            return Recording(self._function, inputs)
        except RuntimeError as error:
            warnings.warn(
                f"its steps run one by one, since it could not be recorded as a CUDA graph: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None


@contextmanager
def computing_directly() -> Iterator[None]:
    """Let every ``Recordings`` call its function as it is, so that its operations and its memory can be counted.

    PyTorch sees nothing of what a replay does. Whatever is called here forgets what it had recorded, and records anew
    when it is called afterwards.
    """
    token = _DIRECTLY.set(True)
    try:
        yield
    finally:
        _DIRECTLY.reset(token)


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Let matrix products and convolutions run in "float32", "tf32" or "bfloat16" on this device.

    TF32 is a way in which GPUs multiply float32; a CPU has none, and computes in float32.
    """
    if device.type != "cuda":
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
        return
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions

"""PyTorch's global settings: while this package computes they are as it needs them, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def usual_settings() -> Iterator[None]:
    """Compute with gradients, in float32, with new tensors on the CPU unless they are told where; also a decorator.

    Guided planning differentiates, which ``torch.inference_mode`` forbids, and tensors that are made in it cannot be
    differentiated later. A default dtype of float64, a default device or autocast would change numbers or mix kinds.
    What is set as usual is left alone: it costs nothing, and other threads see no change.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield

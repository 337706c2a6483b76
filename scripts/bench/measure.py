"""Timing several things in turns, counting their floating-point operations, and the memory that they need."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

MOST_REPEATS = 200
LEAST_REPEATS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    fastest: float
    slowest: float
    repeats: int


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, device: torch.device
) -> dict[str, Timing]:
    """Time every call again and again, in turns, so that a slow spell of the machine meets all of them.

    There are as many rounds as the slowest call needs. In each of them every call takes its turn, and is repeated until
    it has spent its share of the time: fast calls are timed from the first round to the last, as slow ones are.

    Args:
        calls: what to time; each is called once before, which does not count.
        seconds: about how long each is repeated in all, at least 3 and at most 200 times.
        device: waited for after every call where it is a GPU.
    """
    if not calls:
        return {}
    for call in calls.values():
        call()
    # belongs to the first round, and tells how many there are to be
    times = {name: [time_once(call, device)] for name, call in calls.items()}
    slowest = max(found[0] for found in times.values())
    rounds = min(max(math.ceil(seconds / max(slowest, 1e-9)), LEAST_REPEATS), MOST_REPEATS)
    for number in range(rounds):
        for name, call in calls.items():
            turn = times[name] if number == 0 else []
            while not turn or (sum(turn) < seconds / rounds and len(turn) < MOST_REPEATS // rounds):
                turn.append(time_once(call, device))
            if number > 0:
                times[name] += turn
    return {
        name: Timing(statistics.median(found), min(found), max(found), len(found))
        for name, found in times.items()
    }


def time_once(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call; a GPU is waited for before and after."""
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of matrix products and convolutions, also of those in a backward pass."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_operations(call: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products and convolutions that a call makes.

    Those of a replayed CUDA graph are not seen: see ``agents.capture.computing_directly``.
    """
    counter = _Counter()
    with counter:
        call()
    return counter.operations


def peak_rate(device: torch.device, size: int = 1024) -> float:
    """Return the floating-point operations a second of a large float32 matrix product on the device, as it is set up."""
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    timing = time_in_turns({"product": lambda: left @ right}, seconds=0.5, device=device)["product"]
    return 2 * size**3 / timing.fastest


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Return how many bytes more than before a call needs at its peak, or None where the system does not tell.

    On a GPU PyTorch counts them. On the CPU it is the growth of the process's resident memory, of which Linux can forget
    the peak before the call, after what the allocator still holds has been given back.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    forget = Path("/proc/self/clear_refs")
    if not sys.platform.startswith("linux") or not forget.exists():
        return None
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    forget.write_text("5")
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0)


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

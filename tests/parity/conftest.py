"""Parity is compared in PyTorch's own kernels on one thread, so that it does not depend on the processor."""

import warnings

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def portable_kernels():
    """oneDNN chooses the order of its sums by the processor and by the number of threads.

    Measured on one processor: the greatest difference of a denoising step to the original's is 1.7e-6 without oneDNN, and
    3.5e-6 to 1.0e-5 with it. More threads also only wait for each other in many small convolutions.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32 on Intel's GPUs, which nobody asked for
        flags = torch.backends.mkldnn.flags(enabled=False)
        with flags:
            yield
    torch.set_num_threads(threads)

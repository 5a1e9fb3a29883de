"""The machine: devices, threads, memory settings, peak memory, and a description for the records."""

import ctypes
import math
import os
import platform
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import numpy as np
import torch

from steppe.config.run import WORKSPACE
from steppe.distributed import collectives
from steppe.errors import InputError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_CONTEXT = 2**30  # bytes of a GPU that a process takes besides its tensors: CUDA's context, kernels of libraries
_USABLE = 0.9  # of the free memory, as other work may begin


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of CPU threads of torch within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fork_rng() -> Iterator[None]:
    """Restore the global RNGs on leaving: of torch on the processor and the present GPU, of NumPy and of Python.

    `torch.random.fork_rng` by itself is of all GPUs of the machine, and starts a context on each.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def seed_all(seed: int) -> None:
    """Seed the global RNGs of torch, NumPy and Python, which networks may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Within the context let torch use only algorithms whose results are equal in every run, if ``enabled``.

    On a GPU several of its default algorithms add in the order in which threads happen to finish. cuBLAS reads its
    setting, CUBLAS_WORKSPACE_CONFIG, when the process first multiplies on the GPU.

    Raises InputError for an operation that has no such algorithm on a GPU, and if the setting came too late.
    """
    if not enabled:
        yield
        return
    cudnn, filling = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory
    os.environ.setdefault(*WORKSPACE)
    try:
        torch.use_deterministic_algorithms(True)
        # filling memory that is written next takes time and changes no result
        cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = True, False, False
        yield
    except RuntimeError as error:
        if "CUBLAS_WORKSPACE_CONFIG" in str(error):
            raise InputError(
                "deterministic is True and this process has multiplied on the GPU without it; start it with "
                f"{'='.join(WORKSPACE)} in the environment"
            ) from error
        if "does not have a deterministic implementation" not in str(error):
            raise
        operation = str(error).split(" does not", 1)[0]
        raise InputError(
            f"deterministic is True and {operation} has no deterministic algorithm on a GPU; leave "
            "--deterministic out, or train a network without it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = flags


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the kernel; return whether that was possible.

    With the default thresholds every freed activation is returned to the kernel and faulted in again at the next
    step, which takes about half of a small network's step on a CPU.
    """
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False


def peak_memory_mb() -> float:
    """Return the peak memory in MiB: of tensors on the GPU if there is one, else of the whole process.

    NaN on Windows without a GPU.
    """
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if sys.platform == "linux" else peak / 2**20


def room_on_gpu() -> int | None:
    """Return how many more processes like this one the free memory of the GPU has room for, None without a GPU."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    own = torch.cuda.max_memory_reserved() + _CONTEXT
    return int(_USABLE * free / own)


def forget_peak_memory() -> None:
    """Reset the peak memory of a GPU; that of a process on a CPU cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def environment() -> dict[str, Any]:
    """Return versions and hardware as plain data, for a run's record."""
    return {
        "steppe": _version("steppe"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processes": collectives.current_world().size,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"

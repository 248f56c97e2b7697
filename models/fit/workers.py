"""Several processes that train one network, each on its own rows: one for each GPU, or for each share of the cores.

They are started by torch's launcher, for example `torchrun --nproc-per-node 2 -m flows.cli pretrain`; a program that is
started alone is the only worker. Every worker has the same weights; only the first one reports and writes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

TIMEOUT = timedelta(hours=12)  # the others wait while the first one builds the feature table, or validates
T = TypeVar("T")


def join() -> None:
    """Join the other workers if torch's launcher started this process."""
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        import torch.distributed.nn  # its functions would keep a group that exists before them

        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        atexit.register(_leave)


def _leave() -> None:
    """End the threads of the group: one that gives back a tensor while Python ends aborts the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """The GPU of this worker, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(found)
    return found


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the workers."""
    if count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= count()


def of_first(make: Callable[[], T]) -> T:
    """A value that only the first worker makes."""
    if count() == 1:
        return make()
    found = [make() if rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def of_all(mine: T) -> list[T]:
    """The values of all workers, by their number."""
    if count() == 1:
        return [mine]
    found: list[T | None] = [None] * count()
    dist.all_gather_object(found, mine)
    return found  # type: ignore[return-value]

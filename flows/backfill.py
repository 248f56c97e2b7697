"""Dask for building feature tables in parallel: its processes on this machine, or a cluster."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import ExitStack, contextmanager

from pipelines.errors import UnmaskError


class ClusterError(UnmaskError):
    """The Dask cluster cannot do the work. What is finished is kept."""


@contextmanager
def cluster(where: str) -> Iterator[Executor]:
    """Open an executor.

    Args:
        where: "dask" starts a process for each core of this machine; else the address of a Dask scheduler.

    Raises:
        ClusterError: the scheduler does not answer, it has no workers, or they died.
    """
    from distributed import Client, KilledWorker, LocalCluster

    with ExitStack() as stack:
        address: str | LocalCluster = where
        if where == "dask":
            n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            # Dask counts mapped files as memory of a process and would end it.
            options = {"threads_per_worker": 1, "memory_limit": None, "dashboard_address": None}
            address = stack.enter_context(LocalCluster(n_workers=n, silence_logs=logging.ERROR, **options))
        try:
            client = stack.enter_context(Client(address))
        except OSError as error:
            raise ClusterError(
                f"no Dask scheduler answers at {where} ({error}); start one with `dask scheduler`, or set "
                "UNMASK_BACKFILL to another address"
            ) from error
        if not client.scheduler_info()["workers"]:
            raise ClusterError(
                f"the Dask scheduler at {where} has no workers; start some: dask worker {where} --nthreads 1 "
                "--memory-limit 0"
            )
        executor = stack.enter_context(client.get_executor())
        try:
            yield executor
        except (KilledWorker, CancelledError) as error:
            raise ClusterError(
                f"workers of Dask ({where}) died or were lost ({type(error).__name__}: {error}); see their log; if "
                "they lack memory, start fewer on a machine. Run it again: it goes on where it was"
            ) from error

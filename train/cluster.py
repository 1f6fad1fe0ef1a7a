"""Many processes as one run: the same command on every host."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.console import printable
from train.signals import hearing_sigterm

_OPERATIONAL = {"operational": True}


@dataclass(frozen=True)
class ClusterConfig:
    """Where the other processes are; under SLURM, MPI and where TPU_WORKER_HOSTNAMES is set, nothing has to be said."""

    coordinator: str | None = field(default=None, metadata=_OPERATIONAL)  # host:port of process 0
    num_processes: int | None = field(default=None, metadata=_OPERATIONAL)
    process: int | None = field(default=None, metadata=_OPERATIONAL)  # this one's number, from 0
    find: bool = field(default=False, metadata=_OPERATIONAL)  # let JAX look for the cluster, as on Cloud TPU VMs

    def validate(self) -> None:
        """Raise ValueError, in one sentence, where only some of what is needed is given."""
        given = [value is not None for value in (self.coordinator, self.num_processes, self.process)]
        if any(given) and not all(given):
            raise ValueError(
                "--cluster.coordinator, --cluster.num-processes and --cluster.process go together; give all"
            )
        if all(given) and not 0 <= (self.process or 0) < (self.num_processes or 0):
            raise ValueError(f"cluster.process={self.process} must be at least 0 and less than {self.num_processes}")


def join(config: ClusterConfig) -> None:
    """Makes this process one of the run's, before any device is used; alone, does nothing."""
    config.validate()
    if jax.distributed.is_initialized():
        return
    with hearing_sigterm():
        if config.coordinator is not None:
            jax.distributed.initialize(config.coordinator, config.num_processes, config.process)
        elif config.find or _is_one_of_many():
            jax.distributed.initialize()


def agree(**values: Any) -> None:
    """Checks that all processes have the same of each named value; raises ValueError, on all of them, where not."""
    if jax.process_count() == 1:
        return
    digests = [int(hashlib.sha256(repr(value).encode()).hexdigest()[:7], 16) for value in values.values()]
    of_all = np.asarray(multihost_utils.process_allgather(np.array(digests, np.int32))).reshape(-1, len(digests))
    differing = [name for name, column in zip(values, of_all.T, strict=True) if len(set(column.tolist())) > 1]
    if differing:
        raise ValueError(
            f"the {jax.process_count()} processes of this run differ in {', '.join(differing)}; give all of them the "
            "same command, the same text, and a run directory that all of them share"
        )


def where(failed: bool) -> int | None:
    """The first of all processes in which something failed, or None. Every process has to ask."""
    if jax.process_count() == 1:
        return 0 if failed else None
    everywhere = multihost_utils.process_allgather(np.array(failed))
    return int(everywhere.argmax()) if everywhere.any() else None


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is done here is done by all processes or by none: where one fails, the others raise ValueError.

    Nothing in it may be computed on the devices of several processes.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:  # the others may be busy for long
            said = printable(f"process {jax.process_index()} ends with the others, which are told: {error}")
            sys.stderr.write(f"{said}\n")
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # they may have ended on their own
                where(True)
        raise
    if (process := where(False)) is not None:
        raise ValueError(f"process {process} of this run cannot begin, and says why; mend that, and start all again")


def _is_one_of_many() -> bool:
    """Whether the environment says so; JAX's own detection also asks metadata servers, which a laptop has not."""
    if "JOB_COMPLETION_INDEX" in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        return True
    counts = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(count.isdecimal() and int(count) > 1 for count in counts) or "," in os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    )

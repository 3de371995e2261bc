"""The processes of one training: a single one, or those that torchrun started."""

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from crossearth.components.runtime.device import choose_device
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import file_lock

AGENTS = "GROUP_WORLD_SIZE"
FRESH_STORES = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
GROUP = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them, and some batch systems do
ALONE = f"to run as one process: unset {' '.join(GROUP)} LOCAL_RANK"
TELL_AFTER_S = 10.0
JOIN_WITHIN_S = 300.0  # torchrun's processes start together; it waits for its nodes before

log = logging.getLogger(__name__)
_groups = itertools.count()  # that this process has joined: one a recipe


@dataclass(frozen=True)
class Processes:
    """This process among those of the training.

    Attributes:
        rank: 0..size-1; rank 0 alone writes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    @property
    def computing(self) -> dict[str, Any]:
        """What else the last digits of a result depend on, besides inputs, code and version of torch.

        The number of threads and processes and the kind of device change the order of sums. No setting of
        torch makes them equal.
        """
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device)
            if on_gpu
            else f"{self.device.type}, {torch.backends.cpu.get_cpu_capability()}",
            "processes": self.size,
            "threads": torch.get_num_threads(),
        }

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    @contextmanager
    def file_lock(self, path: Path, doing: str) -> Iterator[None]:
        """The first process holds `path`, see `files.file_lock`; what it raises, every process raises."""
        with ExitStack() as held:
            refusal = ""
            if self.is_main_process:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(file_lock(path, doing))
                except InputError as error:
                    refusal = str(error)
            refusal = self.broadcast(refusal)
            if refusal:
                raise InputError(refusal)
            yield

    def assert_equal(self, values: dict[str, str]) -> None:
        """Refuses (InputError in every process) values that differ between them; names one and the ranks."""
        if self.size == 1:
            return
        of_rank: list[dict[str, str]] = [{} for _ in range(self.size)]
        dist.all_gather_object(of_rank, values)
        for name in values:
            others = [rank for rank in range(self.size) if of_rank[rank][name] != of_rank[0][name]]
            if others:
                raise InputError(
                    f"{name} differs between the processes: rank 0 has {of_rank[0][name]}, "
                    f"rank {others[0]} has {of_rank[others[0]][name]}",
                    next_step="give every node the same code, params.yaml, domains and weights",
                )


def _refuse_restarts_that_hang() -> None:
    # after a restart torchrun's agents use the same store, where gloo finds addresses of ended processes
    agents, restarts = _number(AGENTS), _number("TORCHELASTIC_MAX_RESTARTS")
    if agents > 1 and restarts and os.environ.get(FRESH_STORES) != "1":
        raise InputError(
            f"--max-restarts={restarts} on {agents} nodes hangs when a process ends",
            where="torchrun",
            next_step=f"export {FRESH_STORES}=1 on every node and add --rdzv-backend=c10d, or leave it out",
        )


def _number(name: str) -> int:
    """An environment variable as a number; 0 if it is not set."""
    text = os.environ.get(name, "0")
    if not text.isdecimal():
        raise InputError(f"{name}={text}", where="environment", expected="a whole number", next_step=ALONE)
    return int(text)


def _place() -> tuple[int, int]:
    """Rank and number of processes from the environment; (0, 1) if it says neither."""
    if "RANK" not in os.environ:
        return 0, 1
    absent = [name for name in GROUP if name not in os.environ]
    if absent:
        raise InputError(
            f"RANK={os.environ['RANK']}, but no {', '.join(absent)}",
            where="environment",
            expected="all of them, as torchrun sets them, or no RANK",
            next_step=ALONE,
        )
    rank, size, _ = _number("RANK"), _number("WORLD_SIZE"), _number("MASTER_PORT")
    if rank >= size:
        raise InputError(
            f"RANK={rank}, WORLD_SIZE={size}", where="environment", expected="a smaller rank", next_step=ALONE
        )
    return rank, size


def _join(backend: str, rank: int, size: int) -> None:
    """Joins the group.

    What waits for the others hears no signal, so a thread does it beside this one.
    """
    failed: list[Exception] = []

    def join() -> None:
        try:
            store, *_ = next(dist.rendezvous("env://"))
            # a prefix hides the addresses of an earlier group; the counts of several agents may differ
            start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _number(AGENTS) == 1 else ""
            store = dist.PrefixStore(f"{start}/{next(_groups)}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        except Exception as error:  # raised where it is heard
            failed.append(error)

    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    others = f"process 0 at {address}" if rank else f"{size - 1} other(s) to come to {address}"
    waits = f"process {rank} of {size} waits for {others}, as RANK and WORLD_SIZE in the environment say"
    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(TELL_AFTER_S)
    if joining.is_alive():
        log.warning("%s; %s", waits, ALONE)
        joining.join(JOIN_WITHIN_S - TELL_AFTER_S)
    if failed or joining.is_alive():
        why = str(failed[0]).splitlines()[0][:200] if failed else f"none came in {JOIN_WITHIN_S:.0f} s"
        raise InputError(
            f"{waits}: {why}",
            where="environment",
            next_step=f"start all {size} processes, by torchrun say; {ALONE}",
        ) from (failed[0] if failed else None)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Joins the group that torchrun's environment variables describe, and leaves it at the end.

    Without these variables the process is alone.

    Raises:
        InputError: some of the variables are missing; the other processes do not join; torchrun's restarts
            on several nodes, which would hang.
    """
    rank, size = _place()
    device = torch.device(choose_device("auto"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield Processes(0, 1, device)
        return
    _refuse_restarts_that_hang()
    _join("nccl" if device.type == "cuda" else "gloo", rank, size)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()

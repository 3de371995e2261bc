"""The effective batch: shared by processes and cut into micro-batches, with the gradients of the whole."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossearth.components.runtime.processes import Processes
from crossearth.data.tiles.dataset import Batch
from crossearth.model.training.multitask import LossDenominators, MultiTaskLoss


class BatchSampler:
    """Micro-batches of sample positions of one process, from an iteration on.

    Iteration i takes positions i*batch_size .. (i+1)*batch_size - 1 of the stream, in parts by rank.
    """

    def __init__(
        self, first: int, last: int, batch_size: int, micro_batch: int, rank: int, size: int
    ) -> None:
        self.iterations = range(first, last)
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.share = batch_size // size
        self.offset = rank * self.share

    @property
    def per_iteration(self) -> int:
        """Micro-batches of one iteration."""
        return -(-self.share // self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in self.iterations:
            first = iteration * self.batch_size + self.offset
            for start in range(0, self.share, self.micro_batch):
                yield list(range(first + start, first + min(start + self.micro_batch, self.share)))


class Gradients:
    """Gradients of effective batches, equal to those of one process that computes the whole batch at once.

    Args:
        multi_task_loss: its network's trained parameters receive the gradients.
        bf16: whether the forward pass computes in bfloat16 where that is safe.
    """

    def __init__(self, multi_task_loss: MultiTaskLoss, processes: Processes, bf16: bool) -> None:
        self.multi_task_loss, self.processes, self.bf16 = multi_task_loss, processes, bf16
        self.loss: nn.Module = multi_task_loss

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Inside this block the processes exchange gradients."""
        # DistributedDataParallel must go before the process group: when it is freed it holds Python's global
        # lock and waits for threads of gloo that may need this lock
        self.loss = self._wrapped()
        with warnings.catch_warnings():
            # for a 1x1 kernel the two orders of strides mean the same memory layout
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            try:
                yield
            finally:
                self.loss = self.multi_task_loss

    def backward(self, batch: list[Batch]) -> dict[str, float]:
        """Adds the gradients of the effective batch's loss; returns this process's share of the terms.

        Args:
            batch: this process's micro-batches.
        """
        device, size = self.processes.device, self.processes.size
        whole = self._loss_denominators(batch)
        total: dict[str, Tensor] = {}
        for number, micro in enumerate(batch):
            image, label = (
                pixels.to(device, non_blocking=True) for pixels in (micro["image"], micro["label"])
            )
            waits: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if number < len(batch) - 1 and isinstance(self.loss, DistributedDataParallel):
                waits = self.loss.no_sync()  # only the last micro-batch exchanges gradients
            with waits:
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    terms = self.loss(image, label, micro["position"].tolist(), whole)
                # DistributedDataParallel averages over processes, the terms are shares of a sum
                (size * torch.stack(list(terms.values())).sum()).backward()
            for name, term in terms.items():
                total[name] = total.get(name, torch.zeros((), device=device)) + term.detach()
        return dict(zip(total, torch.stack(list(total.values())).tolist(), strict=True))

    def _wrapped(self) -> nn.Module:
        if self.processes.size == 1:
            return self.multi_task_loss
        network = self.multi_task_loss.network
        trained = network.trained_parameters()
        frozen = [name for name, _ in network.named_parameters() if name not in trained]
        frozen += [name for name, _ in network.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self.multi_task_loss, [f"network.{name}" for name in frozen]
        )
        return DistributedDataParallel(self.multi_task_loss)

    def _loss_denominators(self, batch: list[Batch]) -> LossDenominators:
        """Of the effective batch, over all processes."""
        no_object = self.multi_task_loss.config.segmentation.weight_no_object
        num_tokens = self.multi_task_loss.network.config.num_tokens
        parts = [LossDenominators.of(micro["label"], num_tokens, no_object) for micro in batch]
        return LossDenominators(
            *self.processes.sum([float(sum(column)) for column in zip(*parts, strict=True)])
        )

"""Several processes that train one network together: each step is theirs in common, and the first speaks for all.

Gradients are not left to `DistributedDataParallel`. It sorts them into other buckets after its first step, so that a
resumed training adds floats in another order: among three processes on gloo a tenth of the gradients of LeNet-300-100
came out with other bits. It weighs short parts of a batch like long ones, and knows nothing of gradients that an
objective takes on the way to its loss. Here each step ends in one sum, element by element in the order of the ranks,
whatever the library and the wiring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed, nn

from tasks.task import Context

Answer = TypeVar("Answer")


class Team:
    """The processes of one training; one alone has nobody to talk to, and none of this does anything to it.

    The caller has connected them with `torch.distributed.init_process_group`: gloo on CPUs, NCCL on GPUs.

    Args:
        size: the processes that there should be.
        device: where this one computes, its current one if it is a GPU.

    Raises:
        ValueError: the process is not connected to so many.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        found = distributed.get_world_size() if together else 1
        if size > 1 and found != size:
            raise ValueError(
                f"world_size is {size}, but this process trains with {found - 1} others: start it through the cluster, "
                "or in so many processes that torch.distributed connects"
            )
        self.size = size
        self.rank = distributed.get_rank() if size > 1 else 0
        self._device = device

    @property
    def purpose(self) -> tuple[int, ...]:
        """What tells apart the random numbers of the processes: the rank, and nothing for one alone."""
        return (self.rank,) if self.size > 1 else ()

    def first(self, answer: Callable[[], Answer]) -> Answer:
        """What the first process finds; the others wait for it and do not look.

        Raises:
            ConnectionError: another process is gone.
        """
        if self.size == 1:
            return answer()
        told = [answer() if self.rank == 0 else None]
        with _connected():
            distributed.broadcast_object_list(told, src=0, device=self._device)
        return told[0]  # type: ignore[return-value]

    def summed(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The sums over all processes, bit by bit the same in each of them.

        Args:
            tensors: float32, of the same shapes everywhere.

        Raises:
            ConnectionError: another process is gone.
        """
        if self.size == 1:
            return tensors
        length = sum(tensor.numel() for tensor in tensors)
        padding = torch.zeros(-length % self.size, device=self._device)
        mine = torch.cat([*(tensor.reshape(-1) for tensor in tensors), padding])
        # Each process sums its share of the elements in the order of the ranks, and gives the sums to the others.
        parts = torch.empty_like(mine)
        total = torch.empty_like(mine)
        with _connected():
            distributed.all_to_all_single(parts, mine)
            share, *others = parts.chunk(self.size)
            for other in others:
                share += other
            distributed.all_gather(list(total.chunk(self.size)), share)
        sums = torch.split(total[:length], [tensor.numel() for tensor in tensors])
        return [found.view(tensor.shape) for found, tensor in zip(sums, tensors, strict=True)]

    def average_(self, model: nn.Module, loss: torch.Tensor, share: float) -> torch.Tensor:
        """Makes gradients and running statistics those of the whole batch, in place.

        The mean over all examples: parts count as much as they are long. Batch norm normalises each part by its own
        statistics ("ghost" batches, Hoffer et al. 2017); its running mean is that of the whole batch, and its running
        variance the mean of the parts'.

        Args:
            model: after the backward pass of this process's part.
            loss: the mean over the part, a scalar.
            share: of the batch that the part is.

        Returns:
            The loss over the whole batch.

        Raises:
            ConnectionError: another process is gone.
        """
        if self.size == 1:
            return loss
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        changed = [*gradients, *_running(model)]
        *sums, whole = self.summed([tensor.float() * share for tensor in (*changed, loss)])
        for tensor, found in zip(changed, sums, strict=True):
            tensor.copy_(found)
        return whole

    def require_equal(self, state: Callable[[], bytes], step: int) -> None:
        """Checks that all processes hold the same state.

        Raises:
            ConnectionError: another process is gone.
            RuntimeError: they do not.
        """
        if self.size == 1:
            return
        digest = torch.frombuffer(bytearray(hashlib.sha256(state()).digest()), dtype=torch.uint8).to(self._device)
        digests = torch.empty(self.size, len(digest), dtype=torch.uint8, device=self._device)
        with _connected():
            distributed.all_gather(list(digests), digest)
        different = (digests != digests[0]).any(dim=1).nonzero().flatten().tolist()
        if different:
            raise RuntimeError(
                f"after step {step} the states of processes {', '.join(map(str, different))} are not that of process "
                "0: the processes of one training need equal processors and libraries"
            )


ALONE = Team(1, torch.device("cpu"))
"""One process."""


class Shared:
    """A context for all processes of a team: what the first one's says holds for the others too.

    The context of another process is never asked; only when the first has left is its `save` called, for it to leave.

    Args:
        context: of this process.
        team: of the training.
    """

    def __init__(self, context: Context, team: Team) -> None:
        self._context = context
        self._team = team

    def saved(self) -> bytes | None:
        """What the first process was left."""
        return self._team.first(self._context.saved)

    def should_save(self) -> bool:
        """Whether it is time for the first process."""
        return self._team.first(self._context.should_save)

    def save(self, state: bytes) -> None:
        """Keeps the first process's state; all leave if that one has to, or cannot."""
        if self._team.rank == 0:
            stays = False
            try:
                self._context.save(state)
                stays = True
            finally:
                self._team.first(lambda: stays)
        elif not self._team.first(lambda: True):
            self._context.save(state)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """As the first process tells it."""
        if self._team.rank == 0:
            self._context.progress(done, total, note)


def _running(model: nn.Module) -> list[torch.Tensor]:
    """The running statistics that this step has moved, each process's by its own part."""
    return [
        tensor
        for module in model.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.training
        for tensor in (module.running_mean, module.running_var)
        if tensor is not None
    ]


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConnectionError(f"another process of this training is gone: {lines[0]}") from error

"""Numbers of all processes that train together, and on their way from a GPU."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, cuda, distributed

T = TypeVar("T")


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor without gradient over the processes that train together; itself where there is one."""
    if _processes() == 1:
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / _processes()


def from_all_processes(found: list[T]) -> list[T]:
    """What was found in any of the processes that train together."""
    if _processes() == 1:
        return found
    gathered: list[list[T]] = [[] for _ in range(_processes())]
    distributed.all_gather_object(gathered, found)
    return [one for part in gathered for one in part]


class Arriving:
    """A tensor on its way to the CPU."""

    def __init__(self, tensor: Tensor) -> None:
        self.copy = tensor.to("cpu", non_blocking=True)
        self.ready = cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        if self.ready is not None:
            self.ready.record()

    def value(self) -> Tensor:
        """The tensor, waited for."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.copy

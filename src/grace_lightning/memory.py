"""What is kept between epochs."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, cast

from torch import Tensor

T = TypeVar("T")


class Memory:
    """What was made once; it is kept as long as there is room, so many GiB."""

    def __init__(self, gib: float) -> None:
        self.room = gib * 2**30
        self.kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T], parts: Callable[[T], Iterable[Any]]) -> T:
        """Return what was kept under a key, or else what is made; of its ``parts``, tensors take room."""
        if key in self.kept:
            return cast(T, self.kept[key])
        made = make()
        size = sum(part.nbytes for part in parts(made) if isinstance(part, Tensor))
        if size <= self.room:
            self.room -= size
            self.kept[key] = made
        return made

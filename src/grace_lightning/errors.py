"""What the package says to its user: one error class and one warning class."""

from collections.abc import Sequence


class InputError(ValueError):
    """The user's input is wrong; the message names it, what was found, what was expected, and what to do.

    The command line shows the message alone and exits with status 2. Any other exception is a bug.
    """


class LossError(InputError):
    """The loss is not finite. Of several processes that train together, each raises the same."""


class InputWarning(UserWarning):
    """The user's input is odd but usable; the message says what was done about it."""


def expect_range(key: str, value: float, least: float, most: float) -> None:
    """Raise an :class:`InputError` that names ``key`` unless ``value`` lies within its range; NaN lies in none."""
    if not least <= value <= most:
        raise InputError(f"{key}: {value}, expected {least:,g} to {most:,g}")


def expect_widths(key: str, widths: Sequence[int], least: int = 1) -> None:
    """Raise an :class:`InputError` unless ``widths`` are of so many layers at least, and none is absurd."""
    if not (least <= len(widths) <= 100 and all(1 <= width <= 10_000 for width in widths)):
        raise InputError(f"{key}: {list(widths)}, expected {least} to 100 widths from 1 to 10,000")

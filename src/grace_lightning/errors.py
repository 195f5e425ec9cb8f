"""What the package says to its user: one error class and one warning class."""


class InputError(ValueError):
    """The user's input is wrong; the message names it, what was found, what was expected, and what to do.

    The command line shows the message alone and exits with status 2. Any other exception is a bug.
    """


class LossError(InputError):
    """The loss is not finite. Of several processes that train together, each raises the same."""


class InputWarning(UserWarning):
    """The user's input is odd but usable; the message says what was done about it."""

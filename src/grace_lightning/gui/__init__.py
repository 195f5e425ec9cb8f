"""A napari plugin: see filaments, put right what is wrong, and let a network learn from it."""

import logging
import sys
from importlib import import_module
from typing import Any, cast

# Some drivers that draw napari's window bring an LLVM. Triton's own, loaded after it, ends the process: torchvision
# loads it where it is installed, and nothing here needs it.
if "triton" not in sys.modules:
    modules = cast(dict[str, Any], sys.modules)
    modules["triton"] = None
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it says that there is none
    try:
        import_module("grace_lightning.predictor")
    finally:
        del modules["triton"]

"""A configuration file of GRACE, read into overrides of this package's configuration.

:data:`KEYS` says of every key how its value is read and what it sets here, or why it sets nothing.
"""

from grace_lightning.legacy.keys import KEYS
from grace_lightning.legacy.overrides import render
from grace_lightning.legacy.translation import Translation, read_config_file, translate
from grace_lightning.legacy.values import FILE_TYPES, plain

__all__ = ["FILE_TYPES", "KEYS", "Translation", "plain", "read_config_file", "render", "translate"]

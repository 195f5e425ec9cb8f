"""``grace-simulate``."""

from omegaconf import DictConfig

from grace_lightning.config import build, call
from grace_lightning.files import counted
from grace_lightning.simulate import simulate_folder
from grace_lightning.tasks.common import plain


def simulate(cfg: DictConfig) -> None:
    """Make annotated micrographs in a folder."""
    config = plain(cfg)
    simulator = build(config.pop("simulator"), "simulator")
    names = call(simulate_folder, config, simulator=simulator)
    print(f"{counted(len(names), 'micrograph')} in {config['out_dir']}")

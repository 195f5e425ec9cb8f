"""``grace-simulate``."""

from omegaconf import DictConfig
from rich.console import Console

from grace_lightning.config import build, call
from grace_lightning.simulate import simulate_folder
from grace_lightning.tasks.common import plain


def simulate(cfg: DictConfig) -> None:
    """Make annotated micrographs in a folder."""
    config = plain(cfg)
    simulator = build(config.pop("simulator"), "simulator")
    names = call(simulate_folder, config, simulator=simulator)
    Console().print(f"{len(names)} micrographs in {config['out_dir']}", highlight=False)

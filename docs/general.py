"""Put the network of a run of ``grace-train experiment=general`` into the package, and draw the pictures of its page.

python docs/general.py runs/RUN     # src/grace_lightning/general.ckpt, docs/general*.jpg
python docs/general.py              # the pictures alone
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from hydra import compose, initialize_config_dir
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from torch import Tensor

from grace_lightning.checkpoint import GENERAL_FILE, read_checkpoint, write_checkpoint
from grace_lightning.config import config_dir, selected
from grace_lightning.estimate import Estimate, estimate
from grace_lightning.module import CHECKPOINT_KEY
from grace_lightning.predictor import predict
from grace_lightning.scenes import CONTRASTS, AnyScene
from grace_lightning.simulate import Simulator, image_generator

DOCS = Path(__file__).parent
GROUPS = "seed", "data", "features", "augment", "model", "module", "link", "optimizer", "scheduler", "trainer"
"""What the file keeps of the configuration."""

RECIPE = [key for key in GROUPS if key not in ("data", "link")]
RECIPE += ["data.simulation", "data.scale", "data.polarity", "data.batch_size", "data.num_hops"]
"""What the weights depend on, in the configuration."""


def recipe() -> dict:
    """Return what ``experiment=general`` configures, as plain containers."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", ["experiment=general", "run_dir=.", "link.scale=null"])
    return {key: OmegaConf.to_container(cfg, resolve=True)[key] for key in GROUPS}


def put_in_package(run: Path) -> None:
    """Write the weights of a run's best checkpoint and the recipe; leave if the run had another one."""
    checkpoint, expected = read_checkpoint(run / "model" / "best.ckpt"), recipe()
    trained = checkpoint[CHECKPOINT_KEY]
    trained["data"]["simulation"]["root"] = expected["data"]["simulation"]["root"]
    unlike = [key for key in RECIPE if selected(trained, key) != selected(expected, key)]
    if unlike:
        sys.exit(f"{run} was trained with another recipe than experiment=general: {', '.join(unlike)}")
    write_checkpoint({CHECKPOINT_KEY: expected, "state_dict": checkpoint["state_dict"]}, GENERAL_FILE)


def draw(path: Path, panels: dict[str, tuple[Tensor, Estimate | None]]) -> None:
    """Draw images (1, H, W), and below each the filaments that are found in it."""
    figure, axes = plt.subplots(2, len(panels), figsize=(3 * len(panels), 6.3), layout="constrained")
    for (above, below), (title, (image, given)) in zip(axes.T, panels.items(), strict=True):
        seen = given or estimate([image])
        filaments = predict("general", image, scale=seen.scale, polarity=seen.polarity)
        low, high = np.quantile(image, [0.002, 0.998])
        for axis in (above, below):
            axis.imshow(image[0], cmap="gray", vmin=low, vmax=high, interpolation="antialiased")
            axis.set_axis_off()
        for k, filament in enumerate(filaments):
            below.plot(*filament.path.T, color=mpl.colormaps["hsv"](0.618 * k % 1), linewidth=1.4)
        above.set_title(title, fontsize=10)
        print(title, seen, len(filaments))
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 85})


def main() -> None:
    """Put the weights of the run that is named into the package, and draw."""
    if sys.argv[1:]:
        put_in_package(Path(sys.argv[1]))

    def other(seed: int, invert: bool = False, **parameters) -> tuple[Tensor, None]:
        """Draw an image of the other simulator, of which no scene of the training is."""
        image = Simulator(size=(512, 512), **parameters)("x", image_generator(seed, "x")).sample.image
        return -image if invert else image, None

    open_ = {"shapes": ["line", "curve"], "num_blobs": 3}
    draw(
        DOCS / "general.jpg",
        {
            "cryo-EM, edge of the carbon": other(3, snr=1.0, p_carbon=1.0),
            "thin and bright": other(1, True, scale=8.0, num_filaments=12, snr=3.0, period=30.0, defocus=0.8, **open_),
            "rings and spirals": other(2, scale=12.0, num_filaments=5, shapes=["circle", "spiral", "curve"], snr=2.0),
            "wide, close together": other(
                5, scale=26.0, num_filaments=6, p_touching=0.6, snr=0.6, shapes=open_["shapes"]
            ),
        },
    )
    failures = {"any": 2, "sem": 3, "stain": 1, "photograph": 4}
    scenes = {}
    for kind, seed in failures.items():
        sample = AnyScene(kinds=[kind], contrast=CONTRASTS["visible"])("x", image_generator(seed, kind)).sample
        seen = Estimate(sample.metadata["scale"], sample.metadata["polarity"], 1.0)
        scenes[kind] = sample.image, seen
    draw(DOCS / "general-failures.jpg", scenes)


if __name__ == "__main__":
    main()

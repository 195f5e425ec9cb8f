"""How often width and polarity of filaments are estimated right, per kind of simulated images.

    python benchmarks/estimate.py
    python benchmarks/estimate.py --contrast visible --folders 20

Each folder has a few scenes of one kind, width and polarity; kinds are those of ``simulator=any``, and ``default``. A
width is right within 25 %, if the polarity is right, too.
"""

import argparse
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from grace_lightning.estimate import estimate
from grace_lightning.scenes import CONTRASTS, KINDS, AnyScene
from grace_lightning.simulate import Simulator, image_generator


def folder(kind: str, size: int, images: int, contrast: str, rng: np.random.Generator) -> tuple[list, float, str]:
    """Return images of one width and polarity, and these."""
    scale = float(np.exp(rng.uniform(np.log(5), np.log(min(26, size / 16)))))
    if kind == "default":
        polarity = str(rng.choice(["dark", "bright"]))
        snr = {"just_seen": 0.1, "visible": 0.3, "clear": 1.0}[contrast]
        given = {"period": float(rng.uniform(1, 3) * scale), "pixel_size": float(rng.uniform(60, 200) / scale)}
        simulator = Simulator(size=[size, size], scale=scale, snr=snr, **given)
    else:
        polarity = str(rng.choice(KINDS[kind].polarity))
        given = {"contrast": CONTRASTS[contrast], "polarity": polarity}
        simulator = AnyScene(size=[size, size], kinds=[kind], scale=[scale, scale], **given)
    names = [f"{kind}{rng.integers(2**31)}" for _ in range(images)]
    drawn = [simulator(name, image_generator(0, name)).sample.image for name in names]
    return [-image if (kind, polarity) == ("default", "bright") else image for image in drawn], scale, polarity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=10, help="per kind")
    parser.add_argument("--images", type=int, default=5, help="in a folder")
    parser.add_argument("--size", type=int, default=512, help="side of the images, pixels")
    parser.add_argument("--contrast", choices=list(CONTRASTS), default="clear")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, seconds = np.random.default_rng(args.seed), 0.0
    title = f"{args.folders} folders of {args.images} images each, {args.contrast.replace('_', ' ')}"
    table = Table("", "polarity right", "width right", "estimated / true width", "10 to 90 %", title=title)
    found: dict[str, list[tuple[bool, float]]] = {}
    for kind in (*KINDS, "default"):
        for _ in range(args.folders):
            images, scale, polarity = folder(kind, args.size, args.images, args.contrast, rng)
            start = time.process_time()
            one = estimate(images)
            seconds += time.process_time() - start
            found.setdefault(kind, []).append((one.polarity == polarity, one.scale / scale))
    found["all"] = [one for of_kind in found.values() for one in of_kind]
    for kind, of_kind in found.items():
        right, ratio = map(np.array, zip(*of_kind, strict=True))
        low, high = np.quantile(ratio, [0.1, 0.9])
        near = right & (np.abs(ratio - 1) <= 0.25)
        shares = f"{right.mean():.0%}", f"{near.mean():.0%}", f"{np.median(ratio):.2f}"
        table.add_row(kind, *shares, f"{low:.2f} to {high:.2f}")
    Console().print(table)
    count = len(found["all"]) * args.images
    print(
        f"{seconds / count:.2f} CPU s per image of {args.size} x {args.size} pixels (goal: polarity 90 %, width 80 %)"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""How many filaments get their type: of simulated micrographs of several types, whose texture has other periods.

    python benchmarks/polymorphs.py                        # ten minutes
    python benchmarks/polymorphs.py --types 3 data.simulation.simulator.snr=10

A network is trained on such micrographs, with a signal to noise ratio of 4, and finds the filaments of others. Of those
that match a true one, the type is right or wrong; a true filament has the type of most of its nodes.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import compose
from rich.console import Console
from rich.table import Table

from grace_lightning import Predictor, io
from grace_lightning.metrics import compare
from grace_lightning.tasks.train import train


def outcomes(predictor: Predictor, folder: Path) -> np.ndarray:
    """Return true and found types of filaments that match, and the share of nodes that agree, (any, 3)."""
    rows = []
    for source in io.find_sources(folder):
        sample = io.read_sample(source)
        findings = predictor.find(predictor.prepare(sample.image, sample.graph.pos))
        for true, found in compare(sample.truth, findings.filaments, sample.graph).matched.T:
            types = sample.graph.node_type[sample.truth.filaments[true]].numpy()
            filament = findings.filaments[found]
            rows.append((np.bincount(types[types > 0]).argmax(), filament.type, filament.type_share))
    return np.array(rows).reshape(-1, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", type=int, default=2)
    parser.add_argument("--images", type=int, nargs=2, default=[16, 20], help="to train on, and to find filaments in")
    parser.add_argument("overrides", nargs="*", help="of grace-train")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = [f"data.num_classes={args.types}", f"data.simulation.simulator.types={args.types}"]
        given += [f"data.simulation.root={folder}/data", f"log_dir={folder}", f"run_dir={folder}/run"]
        given += [f"data.simulation.num_images={{train: {args.images[0]}, valid: 6, infer: {args.images[1]}}}"]
        given += [
            "data.simulation.simulator.snr=4",
            "trainer.max_epochs=40",
            "evaluate.pictures=false",
            "callbacks.progress=null",
            "callbacks.figures=null",
        ]
        train(compose("train", *given, "callbacks.projector=null", *args.overrides))
        predictor = Predictor.from_checkpoint(f"{folder}/run/model/best.ckpt")
        found = outcomes(predictor, Path(folder, "data", "infer"))
    table = Table("true type", "filaments", "their type is right", "nodes that agree")
    for kind in [*range(1, args.types + 1), None]:
        of_kind = found if kind is None else found[found[:, 0] == kind]
        right = (of_kind[:, 0] == of_kind[:, 1]).mean() if len(of_kind) else np.nan
        share = of_kind[:, 2].mean() if len(of_kind) else np.nan
        table.add_row("all" if kind is None else f"{kind}", f"{len(of_kind)}", f"{right:.2f}", f"{share:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

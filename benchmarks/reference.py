"""Do the networks beat classifiers that see each node and each edge alone? features=statistics, same inputs for all.

    python benchmarks/reference.py                                     # train on train, table of infer
    python benchmarks/reference.py --split valid --models gcn --seeds 0 -- trainer.max_epochs=5

Logistic regression (on standardised inputs) and gradient boosting are told, for a node, its ``x`` and, for an edge, its
``edge_attr`` with the sum and the absolute difference of its two ends' ``x``: like the networks' edge head, neither
knows which end is which. The networks are trained by ``grace-train`` with its defaults, augmentation included.
What follows ``--`` goes to ``grace-train``, and into the configuration that the classifiers' inputs are made with.

With ``--split valid`` the infer folder is not looked at: that is the table to tune by. It flatters the networks, whose
best epoch is chosen by the valid images' edge average precision. Every run has one thread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from grace_lightning.config import build, config_dir
from grace_lightning.data import GraceDataModule, GraphData
from grace_lightning.metrics import classification, known

Run = tuple[float, float, float]
"""Node average precision, edge average precision, CPU seconds."""

CLASSIFIERS = {
    "logistic regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}


def read(overrides: list[str]) -> dict[str, list[GraphData]]:
    """The prepared graphs of ``train`` and ``infer``, as ``grace-train`` with these overrides makes them."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train", [*overrides, "run_dir=."]), resolve=True)
    datamodule: GraceDataModule = build(config["data"], "data", features=build(config["features"], "features"))
    datamodule.setup("fit")
    sets = {name: datamodule.dataset(name) for name in ("train", "infer")}
    return {name: [dataset.prepared(k) for k in range(len(dataset))] for name, dataset in sets.items()}


def table_of(graphs: list[GraphData], head: str) -> tuple[Tensor, Tensor]:
    """Inputs (M, F) and labels (M,) of all nodes or all edges."""
    label = torch.cat([data[f"{head}_label"] for data in graphs])
    if head == "node":
        return torch.cat([data.x for data in graphs]), label
    ends = [(data.x[data.edge_index[0]], data.x[data.edge_index[1]]) for data in graphs]
    rows = [torch.cat([d.edge_attr, a + b, (a - b).abs()], dim=1) for d, (a, b) in zip(graphs, ends, strict=True)]
    return torch.cat(rows), label


def classifier_run(name: str, seed: int, data: dict[str, list[GraphData]]) -> Run:
    start, precision = time.process_time(), []
    for head in ("node", "edge"):
        x, y = known(*table_of(data["train"], head))
        model = CLASSIFIERS[name](seed).fit(x.numpy(), y.numpy())
        x, y = table_of(data["infer"], head)
        probability = torch.from_numpy(model.predict_proba(x.numpy())[:, 1])
        precision.append(classification(probability, y)["average_precision"])
    return precision[0], precision[1], time.process_time() - start


def network_run(overrides: list[str]) -> Run:
    """Average precision of nodes and edges of the inference images, and CPU seconds of the run."""
    metrics, seconds = trained(overrides)
    return metrics["nodes"]["average_precision"], metrics["edges"]["average_precision"], seconds


def trained(overrides: list[str]) -> tuple[dict[str, Any], float]:
    """Train with these overrides, and score the best checkpoint on the inference images: metrics and CPU seconds."""
    command = [str(Path(sys.executable).with_name("grace-train")), *overrides]
    with tempfile.TemporaryDirectory() as folder:
        start = sum(os.times()[2:4])  # of the children, user and system
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([*command, f"log_dir={folder}"], env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        seconds = sum(os.times()[2:4]) - start
        return json.loads(next(Path(folder).glob("*/metrics.json")).read_text()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="../shared/data/roots", help="folder of train, valid and infer")
    parser.add_argument("--models", nargs="+", default=["gcn", "gat"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=["infer", "valid"], default="infer", help="images that the table is about")
    parser.add_argument("overrides", nargs="*", help="for grace-train, after --")
    args = parser.parse_args()

    folders = {"train": "train", "valid": "valid", "infer": args.split}
    overrides = [f"data.{name}_image_dir='{(args.data / folder).resolve()}'" for name, folder in folders.items()]
    overrides = ["data=folders", "features=statistics", "augment=default", *overrides, *args.overrides]
    data = read(overrides)
    runs = {name: [classifier_run(name, seed, data) for seed in args.seeds] for name in CLASSIFIERS}
    for model in args.models:
        runs[model] = [network_run([*overrides, f"model={model}", f"seed={seed}"]) for seed in args.seeds]

    shares = [float((known(*table_of(data["infer"], head))[1]).float().mean()) for head in ("node", "edge")]
    title = f"{args.split}, average precision: mean over seeds {args.seeds} ± standard deviation"
    table = Table("", "nodes", "edges", "CPU s per run", title=title, title_justify="left")
    table.add_row("share of positives", *(f"{share:.3f}" for share in shares), "-", end_section=True)
    for name, values in runs.items():
        *precision, seconds = zip(*values, strict=True)
        spread = [f"{statistics.mean(p):.3f} ± {statistics.pstdev(p):.3f}" for p in precision]
        table.add_row(name, *spread, f"{statistics.mean(seconds):.2f}")
    Console().print(table)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()

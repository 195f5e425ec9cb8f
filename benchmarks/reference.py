"""Do the networks beat classifiers that see each node and each edge alone? features=statistics, same inputs for all.

    python benchmarks/reference.py                                     # train on train, table of infer
    python benchmarks/reference.py --split valid --models gcn --seeds 0 -- trainer.max_epochs=5

Logistic regression (on standardised inputs) and gradient boosting are told, for a node, its features and, for an edge,
its geometry with the sum and the absolute difference of its two ends' features: like the networks' edge head, neither
knows which end is which. The networks are trained as by ``grace-train`` with its defaults, augmentation included.
What follows ``--`` are overrides of ``grace-train``; the classifiers' inputs are made with them, too.

With ``--split valid`` the infer folder is not looked at: that is the table to tune by. It flatters the networks, whose
best epoch is chosen by the valid images' average precision. Every run has one thread.
"""

import argparse
import statistics
from pathlib import Path

import torch
from common import compose, cpu_seconds, trained
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from grace_lightning.config import build
from grace_lightning.data import GraceDataModule
from grace_lightning.metrics import classification, known

Run = tuple[float, float, float]
"""Average precision of nodes and of edges, CPU seconds."""
Inputs = dict[str, tuple[Tensor, Tensor]]
"""Inputs (M, F) and labels (M,) of all nodes and all edges."""

CLASSIFIERS = {
    "logistic regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}


def read(overrides: list[str]) -> dict[str, Inputs]:
    """Return what the classifiers see of ``train`` and ``infer``."""
    config = OmegaConf.to_container(compose("train", *overrides, "run_dir=."), resolve=True)
    features = build(config["features"], "features")
    datamodule: GraceDataModule = build(config["data"], "data", sigma=features.sigma)
    datamodule.setup("fit")
    sets = {}
    for name in ("train", "infer"):
        dataset, nodes, edges, node_labels, edge_labels = datamodule.dataset(name), [], [], [], []
        for data in map(dataset.graph, range(len(dataset))):
            x = features.nodes(data)
            a, b = x[data.edge_index]
            nodes.append(x)
            edges.append(torch.cat([data.edge_attr, a + b, (a - b).abs()], dim=1))
            node_labels.append(data.label("node"))
            edge_labels.append(data.label("edge"))
        parts = {"node": (nodes, node_labels), "edge": (edges, edge_labels)}
        sets[name] = {head: (torch.cat(x), torch.cat(y)) for head, (x, y) in parts.items()}
    return sets


def classifier_run(name: str, seed: int, data: dict[str, Inputs]) -> Run:
    precision = []

    def run() -> None:
        for head in ("node", "edge"):
            x, y = known(*data["train"][head])
            model = CLASSIFIERS[name](seed).fit(x.numpy(), y.numpy())
            x, y = data["infer"][head]
            probability = torch.from_numpy(model.predict_proba(x.numpy())[:, 1])
            precision.append(classification(probability, y)["average_precision"])

    seconds = cpu_seconds(run)
    return precision[0], precision[1], seconds


def network_run(overrides: list[str]) -> Run:
    metrics, seconds = trained(overrides)
    return metrics["nodes"]["average_precision"], metrics["edges"]["average_precision"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="../shared/data/roots", help="folder of train, valid and infer")
    parser.add_argument("--models", nargs="+", default=["gcn", "gat"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=["infer", "valid"], default="infer", help="images that the table is about")
    parser.add_argument("overrides", nargs="*", help="of grace-train, after --")
    args = parser.parse_args()

    folders = {"train": "train", "valid": "valid", "infer": args.split}
    overrides = [f"data.{name}_image_dir='{(args.data / folder).resolve()}'" for name, folder in folders.items()]
    overrides = ["data=folders", "features=statistics", *overrides, *args.overrides]
    data = read(overrides)
    runs = {name: [classifier_run(name, seed, data) for seed in args.seeds] for name in CLASSIFIERS}
    for model in args.models:
        runs[model] = [network_run([*overrides, f"model={model}", f"seed={seed}"]) for seed in args.seeds]

    shares = [float(known(*data["infer"][head])[1].float().mean()) for head in ("node", "edge")]
    title = f"{args.split}, average precision: mean over seeds {args.seeds} ± standard deviation"
    table = Table("", "nodes", "edges", "CPU s per run", title=title, title_justify="left")
    table.add_row("share of positives", *(f"{share:.3f}" for share in shares), "-", end_section=True)
    for name, values in runs.items():
        *precision, seconds = zip(*values, strict=True)
        spread = [f"{statistics.mean(p):.3f} ± {statistics.pstdev(p):.3f}" for p in precision]
        table.add_row(name, *spread, f"{statistics.mean(seconds):.2f}")
    Console().print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()

"""Which images of a folder a network was trained on: dealt once, and kept in its checkpoint."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from grace_lightning.config import check_value, selected
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import counted, some
from grace_lightning.graph import Label, Sample
from grace_lightning.truth import MIN_NODES

TRAINED_ON = "trained_on"
"""Where the configuration in a checkpoint keeps what :meth:`GraceDataModule.described` says of the images."""


class Dealt(NamedTuple):
    """How the images of a folder were split when a network was trained."""

    image_dir: str
    split: Sequence[float]
    split_seed: int
    names: Mapping[str, list[str]] | None  # in each set; None: of an earlier version, which did not keep them


def dealt_before(trained: Mapping[str, Any], path: str | Path = "checkpoint") -> Dealt | None:
    """Return how the configuration in the checkpoint ``path`` split a folder, None if it did not."""
    data, names = trained["data"], selected(trained, f"{TRAINED_ON}.split")
    if not data.get("image_dir"):
        return None
    check_value(names, dict[Literal["train", "valid", "infer"], list[str]] | None, f"{path}: {TRAINED_ON}.split")
    return Dealt(data["image_dir"], data.get("split"), data.get("split_seed"), names)


def deal(
    names: Sequence[str],
    image_dir: str,
    *,
    split: Sequence[float],
    split_seed: int,
    dealt: Dealt | None,
    training: bool,
) -> dict[str, list[str]]:
    """Deal the images ``names`` of a folder, or keep what was ``dealt`` before; return the names by set.

    What is kept has names that are gone, too. An image that is new never comes to validation or inference: it is
    trained on, or left out if there is no ``training``. Another folder has other data if most of what was dealt is not
    in it.
    """
    if dealt is None:
        return split_names(names, split, split_seed)
    before = dealt.names or split_names(names, dealt.split, dealt.split_seed)
    known = {name for part in before.values() for name in part}
    gone, new = sorted(known.difference(names)), sorted({*names} - known)
    if 2 * len(gone) > len(known) and Path(image_dir).resolve() != Path(dealt.image_dir).resolve():
        lacks = f"{image_dir} lacks {len(gone)} of the {len(known)} images of {dealt.image_dir}: {some(gone)}"
        _warn(f"data.image_dir: {lacks}; so these are other data, and are split anew")
        return split_names(names, split, split_seed)
    for key, was, now in (("split", dealt.split, split), ("split_seed", dealt.split_seed, split_seed)):
        if was != now:
            remedy = f"give data.{key}={was}, or no ckpt_path"
            raise InputError(f"data.{key}: {now}, but {image_dir} is split by {was} already; {remedy}")
    if gone:
        _warn(f"data.image_dir: {image_dir} has lost {len(gone)} of {counted(len(known), 'image')}: {some(gone)}")
    if new:
        what = "trained on" if training else "not scored"
        _warn(f"data.image_dir: {image_dir} has {counted(len(new), 'new image')}, {what}: {some(new)}")
    kept = {part: list(given) for part, given in before.items()}
    kept["train"] += new if training else []
    if empty := [part for part in ("train", "valid") if training and not {*kept[part]}.intersection(names)]:
        raise InputError(f"data.image_dir: {image_dir} has no {empty[0]} image any more; start anew without ckpt_path")
    return kept


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=3)


def split_names(names: Sequence[str], split: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Deal images at random to training, validation and inference, by three fractions that add up to 1.

    Training and validation get one image at least; a single one is in both. Returns the names by set, sorted.
    """
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise InputError(f"data.split: {list(split)}, expected three fractions that add up to 1")
    if len(names) == 1:
        return {"train": [*names], "valid": [*names], "infer": []}
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    infer = min(round(split[2] * len(names)), len(names) - 2)
    valid = min(max(1, round(split[1] * len(names))), len(names) - infer - 1)
    bounds = {"valid": (0, valid), "infer": (valid, valid + infer), "train": (valid + infer, len(names))}
    return {part: sorted(names[k] for k in order[a:b]) for part, (a, b) in bounds.items()}


def cut_in_two(sample: Sample) -> dict[str, Sample]:
    """Cut a third off a sample, for ``valid``, the rest is for ``train``; edges across the cut belong to neither.

    It is cut off at that end of the longer side where positive nodes are more evenly dealt to the two.
    """
    axis = int(sample.image.shape[2] > sample.image.shape[1])
    length = sample.image.shape[1 + axis]
    along = sample.graph.pos[:, 1 - axis]
    positive = along[sample.graph.label("node") == Label.TRUE_POSITIVE]
    begin, end = length // 3, length - length // 3
    first, last = (
        min(2 * int(inside.sum()), int((~inside).sum())) for inside in (positive < begin - 0.5, positive >= end - 0.5)
    )
    if first > last:
        return {"valid": _part(sample, axis, 0, begin), "train": _part(sample, axis, begin, length)}
    return {"valid": _part(sample, axis, end, length), "train": _part(sample, axis, 0, end)}


def _part(sample: Sample, axis: int, begin: int, end: int) -> Sample:
    """Return rows (``axis`` 0) or columns (1) of a sample, from one to before another."""
    graph, truth = sample.graph, sample.truth
    keep = (graph.pos[:, 1 - axis] >= begin - 0.5) & (graph.pos[:, 1 - axis] < end - 0.5)
    offset = torch.tensor([begin, 0] if axis else [0, begin])
    if truth is not None:
        number = (torch.cumsum(keep, 0) - 1).numpy()
        parts = [number[nodes[keep.numpy()[nodes]]] for nodes in truth.filaments]
        truth = truth._replace(filaments=[nodes for nodes in parts if len(nodes) >= MIN_NODES])
    return sample.replace(
        image=sample.image.narrow(1 + axis, begin, end - begin).clone(),
        graph=replace(graph.subset(keep), pos=graph.pos[keep] - offset),
        annotation=None if sample.annotation is None else sample.annotation.narrow(axis, begin, end - begin).clone(),
        truth=truth,
    )


def other_pixel_size(trained: Iterable[Mapping[str, Any]], size: float | None) -> str | None:
    """Say that images of ``size`` Angstrom per pixel are unlike those that a network was trained on; None if not.

    ``trained`` are the configurations in checkpoints; those before this was kept say nothing.
    """
    for config in trained:
        before = selected(config, f"{TRAINED_ON}.pixel_size")
        if selected(config, "data.scale") == "each":
            continue
        if size and isinstance(before, int | float) and before > 0 and max(size / before, before / size) > 1.2:
            scale = selected(config, "data.scale") or config["features"]["scale"]
            return (
                f"{size:.4g} Angstrom per pixel, but the network was trained with {before:.4g}; if that is right, "
                f"filaments are not {scale:g} pixels wide here: give features.scale={scale * before / size:.3g}"
            )
    return None

"""A page on which all images of an output folder are looked over: ``index.html``."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from grace_lightning.files import counted
from grace_lightning.measure import filaments_summary, stiffness
from grace_lightning.tasks.common import Config, versions
from grace_lightning.tasks.results import FOUND, RECORD

MANY, OFF, IN_DOUBT = 10.0, 1.5, 0.5
"""Micrographs stand out with so many times the mean number of filaments, with filaments so many times wider or thinner
than in the median one, or with so many bits of doubt per detection (a probability of .11 or .89 has as many)."""

BINS = 30

HEADER = filaments_summary("", []).to_csv(index=False)
"""The first line of ``filaments.csv``."""


class Done(NamedTuple):
    """What is known of an image that is done."""

    rows: list[str]  # of filaments.csv
    metadata: Config


def rows_of(text: str) -> list[str]:
    """Return the rows of an image's ``filaments.csv``; columns that an older version did not write are empty."""
    first, *rows = text.splitlines(keepends=True)
    if first != HEADER:
        table = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
        _, *rows = table.reindex(columns=HEADER.strip().split(",")).to_csv(index=False).splitlines(keepends=True)
    return rows


def as_table(done: Mapping[str, Done]) -> str:
    """Return the text of ``filaments.csv`` of all images that are done."""
    return HEADER + "".join(row for image in done.values() for row in image.rows)


def table_of(done: Mapping[str, Done]) -> pd.DataFrame:
    """Return all filaments of the images that are done; an image may be called NA."""
    number = [len(image.rows) for image in done.values()]
    return pd.read_csv(StringIO(as_table(done))).assign(image=np.repeat(np.array(list(done), dtype=object), number))


def overview(done: Mapping[str, Done], number: int) -> str:
    """Return the page about the images that are done, by name, of so many."""
    table = table_of(done)
    by_image = table.groupby("image")["length"].agg(["size", "sum"]).reindex(list(done), fill_value=0)
    found: list[Config] = [image.metadata.get(FOUND) or {} for image in done.values()]
    images = pd.DataFrame({"name": list(done), "filaments": by_image["size"].array, "length": by_image["sum"].array})
    images = images.assign(
        doubt=[one.get("doubt", 0.0) for one in found],
        width=np.array([one.get("width") for one in found], dtype=np.float64),
        picture=[one.get("picture", False) for one in found],
    )
    images["reasons"] = _reasons(images)
    known = len(table) > 0 and bool(table["length_angstrom"].notna().all())
    unit, end = ("Å", "_angstrom") if known else ("pixels", "")
    drawn = [("length", unit, f"length{end}"), ("mean probability", "", "mean_probability")]
    drawn.insert(1, ("mean curvature", f"1 / {unit.rstrip('s')}", f"mean_curvature{'_per' if end else ''}{end}"))
    of = f" of {number:,}" if number > len(done) else ""
    data = {
        "title": f"{counted(len(table), 'filament')} in {counted(len(done), 'micrograph')}{of}",
        "facts": list(_facts(table, done, unit, end)),
        "histograms": [_histogram(name, unit, table[column]) for name, unit, column in drawn],
        "images": images.drop(columns="width").round({"length": 1, "doubt": 3}).to_dict("records"),
        "settings": list(_settings(done)),
    }
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    text = json.dumps(data, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")  # a name may look like a tag
    return template.replace(">{}<", f">{text}<", 1)


def _reasons(images: pd.DataFrame) -> list[list[str]]:
    """Return why each image stands out, nothing for most."""
    mean, width = images["filaments"].mean(), images["width"] / images["width"].median()
    told = {
        "no filaments": images["filaments"] == 0,
        "{row.many:.0f} times the mean number of filaments": images["filaments"] >= MANY * max(mean, 1e-12),
        "mostly in doubt": images["doubt"] > IN_DOUBT,
        "filaments look {row.wider:.1f} times as wide as elsewhere": width > OFF,
        "filaments look {row.thinner:.1f} times as thin as elsewhere": width < 1 / OFF,
    }
    numbers = images.assign(many=images["filaments"] / max(mean, 1e-12), wider=width, thinner=1 / width)
    return [
        [words.format(row=row) for words, there in told.items() if there[k]]
        for k, row in enumerate(numbers.itertuples(index=False))
    ]


def _facts(table: pd.DataFrame, done: Mapping[str, Done], unit: str, end: str) -> Iterator[str]:
    """Yield what is said about all filaments together; ``end`` is that of the columns that are in this unit."""
    if table.empty:
        return
    length = table[f"length{end}"]
    yield f"Length {length.sum():,.0f} {unit} in all; median {length.median():,.0f}, longest {length.max():,.0f}."
    seen = [(found, image.metadata["pixel_size"]) for image in done.values() if (found := image.metadata.get(FOUND))]
    units = {(found["step"], pixel_size if end else 1.0) for found, pixel_size in seen}
    if len(units) != 1:  # images of several magnifications
        return
    ((step, size),) = units
    lag = np.array([[found[key] for key in ("cosines", "pairs")] for found, _ in seen], dtype=np.float64)
    persistence, low, high = (value * size for value in stiffness(lag[:, 0], lag[:, 1], step))
    if np.isnan(persistence):
        yield "Persistence length: the filaments are too straight, or too short, to tell."
        return
    between = "" if np.isnan(low) else f" (95 % of samples: {low:,.0f} to {high:,.0f})".replace("inf", "any length")
    yield f"Persistence length {persistence:,.0f} {unit}{between}, by the decay of the cosine along filaments."


def _histogram(name: str, unit: str, values: "pd.Series[float]") -> Config:
    """Return equal bins from 0, of what has a unit to the 99.5th percentile: the last one has what is above, too."""
    most = float(values.quantile(0.995)) if len(values) and unit else 1.0
    counts, edges = np.histogram(values.clip(upper=most), BINS, (0.0, most or 1.0))
    return {"name": name, "unit": unit, "edges": edges.tolist(), "counts": counts.tolist()}


def _settings(done: Mapping[str, Done]) -> Iterator[Config]:
    """Yield with what images were done, and the versions of the packages that are installed now."""
    number: Counter[str] = Counter()
    for image in done.values():
        record = image.metadata.get(RECORD)
        if isinstance(record, dict):
            files = [key for key in ("image", "detections") if isinstance(record.get(key), list)]  # size and time
            number[json.dumps({key: value for key, value in record.items() if key not in files})] += 1
    for text, count in number.most_common():
        record = json.loads(text)
        rows = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in record.items()]
        yield {"title": counted(count, "micrograph"), "rows": rows}
    yield {"title": "Versions", "rows": [[name, version] for name, version in versions().items() if version]}

"""``python -m grace_lightning.sweeps FOLDER``: the table of a sweep anew, say of runs that were still queued."""

from __future__ import annotations

import sys
from pathlib import Path

from grace_lightning.sweeps.table import TABLE, collect, print_table, write_table


def main() -> None:
    """Write ``results.csv`` into the sweep's folder that the command line names, and print it."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grace_lightning.sweeps FOLDER")
    folder = Path(sys.argv[1])
    rows = collect([folder])
    if not rows:
        sys.exit(f"{folder}: no runs of a sweep; expected a folder such as runs/2026-01-31_12-00-00")
    write_table(rows, folder / TABLE)
    print_table(rows)


if __name__ == "__main__":
    main()

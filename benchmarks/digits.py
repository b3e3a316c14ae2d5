"""Ten one-class tasks on the 8 x 8 digits that scikit-learn carries: image AUROC of each digit.

    python benchmarks/digits.py --iterations 300

The digits are written as the four files of an IDX data set, the first two thirds of them for
training, and run as any other data set is: a model for each digit, all other digits as defects.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from common import meta, write_results
from flawmap.registry import METHODS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="mkd", choices=sorted(METHODS))
    parser.add_argument("--digit", action="append", help="only this one [default: all ten]")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, action="append", help="[default: 0]")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits")
        store = folder / "results.sqlite"
        command = [sys.executable, "-m", "flawmap.cli.main", "bench", "run"]
        command += ["--data", f"digits={folder / 'digits'}", "--setting", "separate"]
        command += ["--method", args.method, "--results", str(store)]
        options = options_of(args.method, args.size, args.iterations)
        command += [f"--category={digit}" for digit in args.digit or ()]
        command += [f"--set={key}={value}" for key, value in options.items()]
        command += [f"--seed={seed}" for seed in args.seed or [0]]
        subprocess.run(command, check=True)
        rows, encoder = rows_of(store)
    about = meta(data="scikit-learn's digits, 8 x 8 px", encoder=encoder, method=args.method)
    write_results(args.out / f"digits_{args.method}.json", rows, about | options)


def options_of(method: str, size: int, iterations: int) -> dict[str, int | str]:
    """A method that sees each image once has no iterations; of MKD the whole image counts."""
    options: dict[str, int | str] = {"data.size": size}
    if method == "mkd":
        options["method.score"] = "whole"
    if METHODS.load(method).kind == "iterative":
        options["training.iterations"] = iterations
    return options


def write_digits(folder: Path) -> None:
    """The digits, their 17 levels of grey spread over 0..255, in IDX files."""
    folder.mkdir(parents=True)
    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.uint8)
    # Writers follow each other: those of the last third are not among the first.
    first = 2 * len(labels) // 3
    for part, rows in (("train", slice(first)), ("t10k", slice(first, None))):
        for content, values in (("images-idx3", images[rows]), ("labels-idx1", labels[rows])):
            head = struct.pack(">BBBB", 0, 0, 8, values.ndim)
            head += struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{part}-{content}-ubyte").write_bytes(head + values.tobytes())


def rows_of(store: Path) -> tuple[list[dict[str, object]], str]:
    """A row for each digit and seed and one for their mean, and the encoder."""
    from flawmap.bench.store import Store

    with Store(store) as results:
        cells = results.cells()
    rows: list[dict[str, object]] = [
        {"digit": digit, "seed": cell.seed, "image_auroc": figures["image_auroc"]}
        for cell in cells
        for digit, figures in cell.figures.items()
    ]
    return [*rows, mean_of(rows)], cells[0].encoder


def mean_of(rows: list[dict[str, object]]) -> dict[str, object]:
    values = [float(str(row["image_auroc"])) for row in rows]
    return {"digit": "mean", "seed": "all", "image_auroc": sum(values) / len(values)}


if __name__ == "__main__":
    main()

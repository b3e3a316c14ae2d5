"""How long the command line takes to say anything: `flawmap --help` and `import flawmap`.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import meta, write_results

CASES = {
    "python, nothing": [sys.executable, "-c", "pass"],
    "import flawmap": [sys.executable, "-c", "import flawmap"],
    "flawmap --help": [str(Path(sys.executable).with_name("flawmap")), "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows = []
    for name, command in CASES.items():
        times = []
        for _ in range(args.repeats):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
        rows.append(
            {
                "what": name,
                "seconds": round(statistics.median(times), 3),
                "fastest": round(min(times), 3),
                "slowest": round(max(times), 3),
            }
        )
        print(rows[-1])
    write_results(args.out / "startup.json", rows, meta())


if __name__ == "__main__":
    main()

"""`flawmap encoders`: the pretrained networks and whether their weights are here."""

from __future__ import annotations

from flawmap.cli import options, show

NAME = "encoders"
EPILOG = """\b
Any other timm network works by its timm name, with weights from a file:
  flawmap fit photos -o part.flawmap --encoder wide_resnet50_2 --set encoder.weights=FILE

\b
Nothing is fetched from the network unless --set encoder.download=true says so.
"""


def run(json: options.Json = False) -> None:
    """List the encoders and their weights.

    Of each: licence, where its weights come from, whether they are on this machine, and its size.
    """
    from flawmap.cli.catalog import encoders

    found = encoders()
    if json:
        show.json_out({"encoders": found})
        return
    show.table(
        ["name", "weights", "licence", "from", "parameters"],
        [
            [
                entry["name"],
                "present" if entry["present"] else "missing",
                entry["licence"],
                entry["origin"],
                f"{entry['parameters'] / 1e6:.1f} M",
            ]
            for entry in found
        ],
        text_columns=4,
    )
    show.out()
    for entry in found:
        show.out(f"{entry['name']}: {entry['note']}")
        if entry["get"]:
            show.out(f"  to get it: {entry['get']}")

"""`flawmap synthesise`: look at synthetic defects before anything learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from flawmap.cli import options, show
from flawmap.files import as_path

if TYPE_CHECKING:
    from flawmap.data.synthesis import SynthesisConfig

NAME = "synthesise"

_UNSAID = {"foreground": "off", "none_share": 0.0}
"""Of options with a value even where nobody gives one."""

_MOST_PX = 32_000_000
"""Of all images; there are three pictures of each."""

EPILOG = """\b
Examples:
  flawmap synthesise photos -o sheet.png
  flawmap synthesise photos -o scars.png --kind scar --kind patch
  flawmap synthesise photos -o sheet.png --texture folder --texture-folder dtd/images
  flawmap synthesise photos -o faint.png --set opacity=[0.1,0.3]

\b
Each image stands there as it is, with a defect, and with the defect outlined.

\b
JSON: {"output", "images", "without_defect", "area": {"smallest", "median", "largest"}}
"""


def run(
    data: options.Data,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=as_path, metavar="FILE", help="The picture to write."
        ),
    ],
    images: Annotated[int, typer.Option(metavar="N", min=1, max=500, help="How many images.")] = 16,
    size: Annotated[
        int, typer.Option(metavar="PX", min=16, max=2048, help="Height and width of each picture.")
    ] = 256,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="perlin|patch|scar",
            help="Kind of defect; may be given several times. [default: perlin]",
        ),
    ] = None,
    texture: Annotated[
        list[str] | None,
        typer.Option(
            metavar="procedural|images|folder",
            help="What perlin defects are filled with; may be given several times. "
            "[default: procedural, images]",
        ),
    ] = None,
    texture_folder: Annotated[
        Path | None,
        typer.Option(parser=as_path, metavar="DIR", help="Pictures for --texture folder."),
    ] = None,
    foreground: Annotated[
        str, typer.Option(metavar="off|auto", help="auto: only on the object, if there is one.")
    ] = "off",
    none_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0, max=0.99, help="Share of the images without a defect."
        ),
    ] = 0.0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A=B",
            help="Any other option of the synthesis, as opacity=[0.5,1]; several times.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Draws images and defects.")] = 0,
    white_level: Annotated[
        int | None,
        typer.Option(metavar="N", help="The value of white in 16-bit images, such as 4095."),
    ] = None,
    format: options.Format = None,
    category: options.Categories = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw synthetic defects on good images, to look at.

    What learns from such defects needs some that look like what could go wrong.
    """
    from flawmap.data.detect import read_data
    from flawmap.data.synthesis import Synthesis
    from flawmap.errors import ConfigError, ExportError
    from flawmap.files import atomic_path
    from flawmap.outputs.sheet import contact_sheet

    config = _asked(kind, texture, texture_folder, foreground, none_share, settings or ())
    kind_of_picture = _format(output)
    if images * size * size > _MOST_PX:
        raise ConfigError(
            "the picture would be too large to look at",
            where="--images and --size",
            given=f"{images} images of {size} x {size} px",
            expected=f"at most {_MOST_PX // size**2} images of this size",
        )
    synthesis = Synthesis(config)
    whole = read_data(data, format=format, seed=seed)
    table = whole if category is None else whole.only(category)
    files = (path for s in whole.samples for path in (s.path, *s.masks))
    if output.exists() and any(output.samefile(path) for path in files):
        raise ConfigError(
            "the picture would replace an image of the data",
            where="--output",
            given=output,
            expected="a new name",
        )
    with show.progress(quiet).task("Drawing defects", min(images, len(table))) as task:
        sheet = contact_sheet(
            table,
            synthesis,
            images=images,
            size=size,
            seed=seed,
            white_level=white_level,
            on_progress=lambda done, total: task.update(done),
        )
    with atomic_path(output, error=ExportError) as part:
        sheet.picture.save(part, format=kind_of_picture)
    _tell(output, sheet.areas, json=json)


def _asked(
    kind: list[str] | None,
    texture: list[str] | None,
    texture_folder: Path | None,
    foreground: str,
    none_share: float,
    settings: Sequence[str],
) -> SynthesisConfig:
    """The synthesis that the options ask for.

    Raises:
        ConfigError: An option is wrong, would do nothing, or is given twice.
    """
    from flawmap.config import read_pairs
    from flawmap.data.synthesis import Kind, Texture, make_synthesis
    from flawmap.errors import ConfigError

    _known("--kind", kind or (), get_args(Kind))
    _known("--texture", texture or (), get_args(Texture))
    _known("--foreground", [foreground], ("off", "auto"))
    if "folder" in (texture or ()) and texture_folder is None:
        raise ConfigError(
            "--texture folder needs the folder",
            where="--texture-folder",
            expected="--texture-folder DIR, with pictures of textures",
        )
    if texture and texture_folder and "folder" not in texture:
        raise ConfigError(
            "the folder of textures would not be used",
            where="--texture-folder",
            given=str(texture_folder),
            hint="give --texture folder too, or no --texture at all",
        )
    if kind and "perlin" not in kind and (texture or texture_folder):
        raise ConfigError(
            "pasted defects have no texture",
            where="--texture" if texture else "--texture-folder",
            given=f"with --kind {' --kind '.join(kind)}",
            hint="give --kind perlin too, or no texture",
        )
    given = {
        "kinds": kind,
        "textures": texture or (["folder"] if texture_folder else None),
        "texture_folder": texture_folder,
        "foreground": foreground,
        "none_share": none_share,
    }
    for path, value in read_pairs(settings):
        name = path.removeprefix("method.synthesis.")
        if given.get(name) not in (None, _UNSAID.get(name)):
            raise ConfigError(
                "the same is said twice",
                where=f"--set {name}",
                given=f"--{name.replace('_', '-').removesuffix('s')} too",
                hint="leave one of them out",
            )
        given[name] = value
    return make_synthesis({k: v for k, v in given.items() if v is not None})


def _tell(output: Path, areas: Sequence[float], *, json: bool) -> None:
    """What was drawn; areas as of a `Sheet`."""
    import statistics

    drawn = sorted(area for area in areas if area)
    area = {
        "smallest": drawn[0] if drawn else None,
        "median": statistics.median(drawn) if drawn else None,
        "largest": drawn[-1] if drawn else None,
    }
    if json:
        show.json_out(
            {
                "output": str(output),
                "images": len(areas),
                "without_defect": len(areas) - len(drawn),
                "area": area,
            }
        )
        return
    show.out(f"{output}: {len(drawn)} of {len(areas)} images have a defect")
    if drawn:
        show.out(
            f"  area of the image: {area['smallest']:.2%} to {area['largest']:.2%}, "
            f"median {area['median']:.2%}"
        )


def _known(option: str, values: Sequence[str], known: Sequence[str]) -> None:
    from flawmap.errors import unknown_name

    for value in values:
        if value not in known:
            raise unknown_name("choice", value, known, where=option)


def _format(output: Path) -> str:
    from PIL import Image

    from flawmap.errors import ConfigError

    found = Image.registered_extensions().get(output.suffix.lower())
    if found not in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        raise ConfigError(
            "the ending does not name a kind of picture",
            where="--output",
            given=output.name,
            expected=".png, .jpg, .webp, .tif or .bmp",
        )
    return found

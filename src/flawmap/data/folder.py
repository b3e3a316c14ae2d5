"""One product: a folder of good images, with or without folders of defects beside them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flawmap.data.lister import Lister
from flawmap.data.samples import SampleTable, table_of
from flawmap.data.words import Meaning, meaning
from flawmap.errors import DataError
from flawmap.files import is_folder
from flawmap.types import GOOD, Sample
from flawmap.wording import few, listed, shown


@dataclass(frozen=True)
class Product:
    """What lies in one product's folder: the names of its sub-folders, by their meaning."""

    images: tuple[str, ...]
    good: tuple[str, ...]
    defects: tuple[str, ...]
    reserved: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def trouble(self) -> str | None:
        """Why this is no clear product folder, or None when it is one."""
        if self.reserved:
            return f"it has a folder '{self.reserved[0]}', which means a split or masks"
        if self.good and self.images:
            return f"images lie both directly in it and in its folder '{self.good[0]}'"
        if not self.good and self.others:
            names = few([f"'{shown(n)}'" for n in self.others], limit=3)
            return (
                f"its sub-folders ({names}) do not say whether they hold good images, defects or "
                "products"
            )
        if not self.good and not self.images:
            return "it has neither images nor a folder of good ones"
        return None


def survey(lister: Lister, folder: Path) -> Product:
    """Sort the sub-folders of one folder by their meaning; folders without images do not count."""
    folders, images = lister.level(folder)
    groups: dict[Meaning, list[str]] = {"good": [], "defects": [], "reserved": [], "others": []}
    for name in folders:
        groups[meaning(name)].append(name)
    inner = Lister(left_out=lister.left_out)
    groups["others"] = [n for n in groups["others"] if holds_images(inner, folder / n)]
    return Product(
        images=tuple(images),
        good=tuple(groups["good"]),
        defects=tuple(groups["defects"]),
        reserved=tuple(groups["reserved"]),
        others=tuple(groups["others"]),
    )


def holds_images(lister: Lister, folder: Path, depth: int = 4) -> bool:
    """Whether an image lies in a folder or at most `depth` levels below."""
    folders, images = lister.level(folder)
    return bool(images) or (
        depth > 0 and any(holds_images(lister, folder / n, depth - 1) for n in folders)
    )


def read_product(
    lister: Lister, folder: Path, product: Product, category: str, *, all_good: bool = False
) -> list[Sample]:
    """The samples of one product's folder.

    Folders beside a folder of good images are kinds of defects, whatever they are called.

    Args:
        lister: Collects what cannot be read.
        folder: The product's folder.
        product: Its survey.
        category: The category's name.
        all_good: Take sub-folders of unknown meaning as good images too.
    """
    base = str(folder)
    samples = [_good(os.path.join(base, name), category) for name in product.images]  # noqa: PTH118
    for name in product.good:
        samples += [_good(path, category) for path in below_good(lister, folder / name)]
    for name in product.others if all_good and not product.good else ():
        inner = survey(Lister(), folder / name)
        if inner.good and inner.trouble is None:
            samples += read_product(lister, folder / name, inner, category)
        else:
            samples += [_good(path, category) for path in below_good(lister, folder / name)]
    kinds = [*product.defects, *(product.others if product.good else ())]
    for name in kinds:
        samples += [
            Sample(path=path, category=category, split="test", label=1, defect=name)
            for path in lister.tree(folder / name)
        ]
    return samples


def below_good(lister: Lister, folder: Path) -> list[str]:
    """All images below a folder of good ones.

    Raises:
        DataError: A folder in it is called like defects, masks or a split.
    """
    paths = lister.tree(folder)
    for place in sorted({os.path.dirname(path) for path in paths}):  # noqa: PTH120
        inner = Path(place).relative_to(folder)
        for part in inner.parts:
            if meaning(part) in ("defects", "reserved"):
                raise DataError(
                    f"among good images lies a folder '{shown(part)}', which means defects, masks "
                    "or a split: what is in it would be learnt as good",
                    where=shown(folder / inner),
                    hint="move it out of the folder of good images, rename it, or list the images "
                    "in a table",
                )
    return paths


def category_name(root: Path) -> str:
    """The category that a folder names."""
    name = root.name if root.name not in ("", "..") else root.resolve().name
    return name or "default"


def _good(path: str, category: str) -> Sample:
    return Sample(path=path, category=category, split="train", label=0, defect=GOOD)


class Folder:
    """Reads one folder as one category, named by the folder; every good image trains."""

    name: ClassVar[str] = "folder"
    expects: ClassVar[str] = (
        "good images of one product directly in the folder, or in a folder 'good' (or 'ok', "
        "'normal') with folders of defects beside it"
    )
    generic: ClassVar[bool] = True

    def matches(self, root: Path) -> str | None:
        """Images, or a folder of good ones, and nothing of unclear meaning."""
        if not is_folder(root):
            return None
        product = survey(Lister(), root)
        if product.trouble is not None:
            return None
        if product.images:
            return f"{len(product.images)} images lie directly in it"
        return f"it has a folder of good images, '{product.good[0]}'"

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the images; asked for by name, unclear sub-folders are good images too.

        Raises:
            DataError: The folder holds splits or masks, which this layout does not know.
        """
        lister = Lister()
        product = survey(lister, root)
        if product.reserved:
            raise DataError(
                f"{product.trouble}: taking everything below as good images would train on defects",
                where=shown(root),
                expected=self.expects,
                hint="move the good images to a folder of their own, or use --format mvtec "
                "(train/good, test/<defect>, ground_truth/<defect>) or a table",
            )
        category = category_name(root)
        notes = []
        if product.others and not product.good:
            notes.append(
                "all images in these sub-folders are taken as good:\n" + listed(product.others)
            )
        samples = read_product(lister, root, product, category, all_good=True)
        return table_of(self, root, samples, lister, notes=notes)

"""Many products: a folder that holds one folder per product."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from flawmap.data.folder import Product, read_product, survey
from flawmap.data.lister import Lister
from flawmap.data.samples import SampleTable, table_of
from flawmap.data.words import meaning
from flawmap.errors import DataError
from flawmap.files import is_folder
from flawmap.types import Sample
from flawmap.wording import counted, few, listed, shown


class Folders:
    """Reads each sub-folder as one category; every good image trains."""

    name: ClassVar[str] = "folders"
    expects: ClassVar[str] = (
        "one folder per product and no images beside them; in each, good images directly or in a "
        "folder 'good' (or 'ok', 'normal') with folders of defects beside it"
    )
    generic: ClassVar[bool] = True

    def matches(self, root: Path) -> str | None:
        """Every sub-folder with images is a product's, and no name means something else."""
        if not is_folder(root):
            return None
        lister = Lister()
        names, images = lister.level(root)
        if images or any(meaning(name) != "others" for name in names):
            return None
        products = _products(lister, root, names)
        if not products or any(p.trouble for p in products.values()):
            return None
        count = counted(len(products), "sub-folder is a product", "sub-folders are products")
        return f"{count}: " + ", ".join(f"'{shown(n)}'" for n in list(products)[:3])

    def read(self, root: Path, seed: int) -> SampleTable:
        """List the images of every product.

        Raises:
            DataError: Images lie beside the product folders, or a product's folder is unclear.
        """
        lister = Lister()
        names, images = lister.level(root)
        products = _products(lister, root, names)
        troubles = [f"{shown(n)}: {p.trouble}" for n, p in products.items() if p.trouble]
        if images:
            troubles.insert(0, f"{len(images)} images lie beside the product folders")
        if troubles:
            raise DataError(
                f"these folders are not clear product folders:\n{listed(troubles)}",
                where=shown(root),
                expected=self.expects,
                hint="move the good images of each product into its folder, or describe the data "
                "with a table (columns path, category, split, label, mask)",
            )
        samples: list[Sample] = []
        for name, product in products.items():
            samples += read_product(lister, root / name, product, category=name)
        owners = {str(root / name): name for name in products}
        notes = []
        # Folders of dates or shifts look the same.
        if len(products) > 1 and all(sample.label == 0 for sample in samples):
            notes.append(
                f"each of {len(products)} folders is read as a product: "
                f"{few([shown(name) for name in products])}; if they show one, add --format folder"
            )
        return table_of(self, root, samples, lister, notes=notes, owners=owners)


def _products(lister: Lister, root: Path, names: list[str]) -> dict[str, Product]:
    """The surveys of the sub-folders that hold anything at all."""
    surveys = {name: survey(lister, root / name) for name in names}
    return {n: p for n, p in surveys.items() if p != Product((), (), (), (), ())}

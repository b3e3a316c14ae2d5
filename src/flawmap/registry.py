"""Explicit lazy tables of what can be named: methods and data formats.

Nothing is imported before it is asked for. Other packages add entries through the entry-point
groups `flawmap.methods` and `flawmap.formats`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from flawmap.errors import ConfigError, missing_extra, unknown_name


class Registry(Mapping[str, str]):
    """A table from a name to the place of an object, "module:attribute".

    Attributes:
        kind: What the names stand for, for messages.
        own: The names that flawmap itself brings.
    """

    def __init__(self, kind: str, entries: Mapping[str, str], *, group: str) -> None:
        self.kind = kind
        self.own = tuple(entries)
        self._entries = dict(entries)
        self._group = group
        self._outside_read = False

    def _with_outsiders(self) -> dict[str, str]:
        if not self._outside_read:
            for point in entry_points(group=self._group):
                self._entries.setdefault(point.name, point.value)
            self._outside_read = True
        return self._entries

    def __getitem__(self, name: str) -> str:
        entries = self._with_outsiders()
        if name not in entries:
            raise unknown_name(self.kind, name, entries, where=self.kind)
        return entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._with_outsiders())

    def __len__(self) -> int:
        return len(self._with_outsiders())

    def __contains__(self, name: object) -> bool:
        return name in self._with_outsiders()

    def load(self, name: str) -> Any:
        """Import the object that `name` stands for.

        Raises:
            ConfigError: The name is unknown, or its module cannot be imported.
        """
        target = self[name]
        module, _, attribute = target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if isinstance(error, ImportError) and (extra := missing_extra(error)) is not None:
                raise extra from error
            raise ConfigError(
                f"the {self.kind} '{name}' cannot be loaded: {error}",
                where=target,
                hint="install the package that provides it, or report it to its authors",
            ) from error


METHODS = Registry(
    "method",
    {
        "dinomaly": "flawmap.methods.dinomaly:Dinomaly",
        "dmdd": "flawmap.methods.dmdd:DMDD",
        "intra": "flawmap.methods.intra:InTra",
        "mkd": "flawmap.methods.mkd:MKD",
        "patchcore": "flawmap.methods.patchcore:PatchCore",
        "rd4ad": "flawmap.methods.rd4ad:RD4AD",
    },
    group="flawmap.methods",
)

FORMATS = Registry(
    "data format",
    {
        "folder": "flawmap.data.folder:Folder",
        "folders": "flawmap.data.folders:Folders",
        "mvtec": "flawmap.data.mvtec:MVTec",
        "mvtec-loco": "flawmap.data.mvtec_loco:MVTecLOCO",
        "mvtec-ad-2": "flawmap.data.mvtec_ad_2:MVTecAD2",
        "mvtec-3d": "flawmap.data.mvtec_3d:MVTec3D",
        "visa": "flawmap.data.visa:VisA",
        "btad": "flawmap.data.btad:BTAD",
        "real-iad": "flawmap.data.real_iad:RealIAD",
        "real-iad-single-view": "flawmap.data.real_iad:RealIADSingleView",
        "real-iad-noisy": "flawmap.data.real_iad:RealIADNoisy",
        "magnetic-tile": "flawmap.data.magnetic_tile:MagneticTile",
        "elpv": "flawmap.data.elpv:Elpv",
        "elpv-uncertain": "flawmap.data.elpv:ElpvUncertain",
        "mnist": "flawmap.data.idx:Mnist",
        "fashion-mnist": "flawmap.data.idx:FashionMnist",
        "idx": "flawmap.data.idx:Idx",
        "cifar-10": "flawmap.data.cifar10:Cifar10",
        "table": "flawmap.data.table:Table",
    },
    group="flawmap.formats",
)

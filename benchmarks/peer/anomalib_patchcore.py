"""Runs inside the peer's environment: anomalib's PatchCore with the offline encoder's weights.

Reads a job (JSON) that names the folders of good and test images and the encoder's weights, fits
through anomalib's own Engine, runs its own test loop, and writes times, scores, and the patches
with the indices of the coreset, so that both coresets can be judged on the same patches.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.models.components.sampling import k_center_greedy
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    torch.manual_seed(job["seed"])
    torch.set_num_threads(job["threads"])
    transform = Compose(
        [
            Resize((job["size"], job["size"]), antialias=True),
            Normalize(mean=[127 / 255] * 3, std=[128 / 255] * 3),
        ]
    )
    model = Patchcore(
        backbone=job["backbone"],
        layers=job["layers"],
        pre_trained=False,
        coreset_sampling_ratio=job["ratio"],
        num_neighbors=job["neighbours"],
        pre_processor=PreProcessor(transform=transform),
        visualizer=False,
    )
    load_weights(model, job["backbone"], job["weights"])
    data = Folder(
        name="tiles",
        root=job["root"],
        normal_dir="good",
        abnormal_dir="defect",
        normal_test_dir="test_good",
        train_batch_size=job["batch_size"],
        eval_batch_size=job["batch_size"],
        num_workers=job["workers"],
        # Its fit needs a validation set: as few test images as it allows.
        val_split_mode="from_test",
        val_split_ratio=0.05,
    )
    kept: dict[str, object] = {}
    select = k_center_greedy.KCenterGreedy.select_coreset_idxs

    def remember(self):
        began = time.perf_counter()
        indices = select(self)
        kept["coreset_seconds"] = time.perf_counter() - began
        kept["embedding"], kept["indices"] = self.embedding, [int(i) for i in indices]
        return indices

    k_center_greedy.KCenterGreedy.select_coreset_idxs = remember
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=folder)
        began = time.perf_counter()
        engine.fit(model, datamodule=data)
        fit_seconds = time.perf_counter() - began
        data.setup("test")
        began = time.perf_counter()
        engine.test(model, datamodule=data)
        test_seconds = time.perf_counter() - began
    np.savez(
        out / "peer_coreset.npz",
        embedding=kept["embedding"].numpy().astype(np.float32),
        indices=np.array(kept["indices"]),
    )
    import anomalib

    (out / "peer.json").write_text(
        json.dumps(
            {
                "fit_seconds": fit_seconds,
                "coreset_seconds": kept["coreset_seconds"],
                "test_seconds": test_seconds,
                "test_images": len(data.test_data),
                "version": anomalib.__version__,
                "torch": torch.__version__,
            }
        )
    )


def load_weights(model: Patchcore, backbone: str, path: str) -> None:
    """The file's tensors map one to one, in order, onto timm's full network."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    values = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
    names = [
        k for k in timm.create_model(backbone).state_dict() if not k.endswith("num_batches_tracked")
    ]
    named = dict(zip(names, values, strict=True))
    network = model.model.feature_extractor.feature_extractor
    wanted = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    missing = [k for k in wanted if k not in named]
    if missing:
        raise SystemExit(f"the peer's network has other names: {missing[:3]}")
    network.load_state_dict({k: named[k] for k in wanted}, strict=False)


if __name__ == "__main__":
    main()

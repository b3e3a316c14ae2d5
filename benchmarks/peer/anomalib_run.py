"""Runs inside the peer's environment: one method of anomalib with weights that lie on this machine.

    PEER/bin/python benchmarks/peer/anomalib_run.py JOB.json

The job names the images, the encoder's weights in timm's own names and the settings. The method is
fitted and run by anomalib's own Engine on the same files as flawmap, without its post-processor:
what is written are the maps and image scores as the network gives them, before anomalib's
normalisation clamps them to 0..1. Its own figures are taken afterwards, from the same outputs, by
its post-processor and its metric classes, with the test images as its validation images, as its
MVTec data module has them by default.

Nothing can be fetched in this process. What wants to be is reported as the reason of the failure.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

_FORESEEN_AFTER = 20.0
"""Seconds of a coreset selection, all of whose steps cost the same, after which its end is told."""
_PROBE_STEPS, _WARM_STEPS = 6, 2

Job = dict[str, Any]


class CannotRun(Exception):
    """The method cannot be run here; the message says why."""


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    answer = Path(job["out"]) / "result.json"
    try:
        forbid_network()
        run(job, lambda found: write(answer, found))
    except Exception as error:  # Whatever the peer raises is the cell's reason.
        traceback.print_exc()
        write(answer, {"reason": reason_of(error)})


def write(path: Path, found: dict[str, Any]) -> None:
    path.with_suffix(".part").write_text(json.dumps(found))
    path.with_suffix(".part").replace(path)


def reason_of(error: BaseException) -> str:
    """One sentence; what wanted to be fetched wins over what became of that wish."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CannotRun):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def forbid_network() -> None:
    """Every name of a host is unknown from now on, so that nothing waits for an answer either."""

    def refuse(host: object, *_: object, **__: object) -> None:
        raise CannotRun(f"needs a download from {host}")

    socket.getaddrinfo = refuse  # type: ignore[assignment]


def run(job: Job, report: Callable[[dict[str, Any]], None]) -> None:
    began = time.perf_counter()
    import anomalib
    import torch
    from anomalib.engine import Engine

    torch.set_num_threads(job["threads"])
    use_local_weights(job["backbone"], job["weights"])
    found: dict[str, Any] = {
        "version": anomalib.__version__,
        "versions": {"anomalib": anomalib.__version__, "anomalib's torch": torch.__version__},
    }
    with tempfile.TemporaryDirectory() as folder:
        data = datamodule(job, Path(folder))
        limits = training_limits(job, data, Path(folder))
        deadline = began + job["limit_seconds"]
        coreset = watch_coreset(deadline)
        torch.manual_seed(job["seed"])
        model = build(job)
        # Without validation: looking at the test images is no part of a fit.
        engine = Engine(**quiet(Path(folder)), limit_val_batches=0, **limits)
        start = time.perf_counter()
        engine.fit(model, datamodule=data)
        found["fit_seconds"] = time.perf_counter() - start
        found["steps"] = int(engine.trainer.global_step)
        found["coreset_seconds"] = coreset.get("seconds")
        if job.get("keep_coreset"):
            keep_coreset(coreset, Path(job["out"]))
        coreset.clear()
        outputs = Outputs(job)
        scorer = Engine(**quiet(Path(folder)), callbacks=[outputs.callback()])
        start = time.perf_counter()
        scorer.predict(model, dataloaders=[data.test_dataloader()], return_predictions=False)
        found["score_seconds"] = time.perf_counter() - start
        outputs.close()
    found["peak_memory_mb"] = peak_memory_mib()
    # Already now: should its metrics take too long or too much, the outputs stay.
    report(found)
    if job.get("own_metrics", True):
        found["own"] = own_metrics(job, model)
        report(found)


def peak_memory_mib() -> int | None:
    """The most memory that this process ever held; what started it does not count."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024)
    except OSError:
        pass
    return None


def quiet(folder: Path) -> dict[str, Any]:
    return {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        # No checkpoint after every epoch, no bars, no log of losses: they are no part of learning.
        "barebones": True,
        "default_root_dir": folder / "engine",
    }


def use_local_weights(backbone: str | None, weights: str | None) -> None:
    """timm hands out the local weights where the peer asks for pretrained ones."""
    import timm
    from safetensors.torch import load_file

    create = timm.create_model

    def local(name: str, pretrained: bool = False, **options: Any) -> Any:
        network = create(name, pretrained=False, **options)
        if pretrained:
            if name != backbone or weights is None:
                raise CannotRun(f"needs pretrained weights of {name}, which no package here has")
            state = load_file(weights)
            wanted = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
            missing = [k for k in wanted if k not in state]
            if missing:
                raise CannotRun(f"the weights do not fit the peer's network: no {missing[0]}")
            network.load_state_dict({k: state[k] for k in wanted}, strict=False)
        return network

    timm.create_model = local


def datamodule(job: Job, folder: Path) -> Any:
    """Links to the very files, in folders of the layout that anomalib reads."""
    from anomalib.data import Folder

    for name in ("good", "test_good", "test_defect"):
        (folder / name).mkdir()
    for index, path in enumerate(job["train"]):
        link(folder / "good", index, path)
    for index, (path, label) in enumerate(zip(job["test"], job["labels"], strict=True)):
        link(folder / ("test_defect" if label else "test_good"), index, path)
    return Folder(
        name="benchmark",
        root=folder,
        normal_dir="good",
        normal_test_dir="test_good",
        abnormal_dir="test_defect",
        train_batch_size=job["batch_size"],
        eval_batch_size=job["eval_batch_size"],
        num_workers=job["workers"],
        val_split_mode="none",
    )


def link(folder: Path, index: int, path: str) -> None:
    # Lower case: the peer knows fewer spellings of an ending.
    (folder / f"{index:06d}{Path(path).suffix.lower()}").symlink_to(Path(path).resolve())


def build(job: Job) -> Any:
    """The method with the local encoder, without post-processor, metrics and pictures."""
    from anomalib import models
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    resize = Resize((job["size"], job["size"]), antialias=True)
    parts = [resize, Normalize(mean=job["mean"], std=job["std"])] if job["mean"] else [resize]
    common = {
        "pre_processor": PreProcessor(transform=Compose(parts)),
        "post_processor": False,
        "evaluator": False,
        "visualizer": False,
    }
    method = getattr(models, job["class"])
    if job.get("schedule") == "step":
        method = per_step(method)
    return method(**job["options"], **common)


def per_step(method: type) -> type:
    """The learning rate moves with every step, and its warm-up ends within the run.

    As released, Lightning moves it once an epoch, from zero over 100 epochs.
    """

    class PerStep(method):  # type: ignore[misc, valid-type]
        def configure_optimizers(self) -> Any:
            (optimizer,), (schedule,) = super().configure_optimizers()
            total = self.trainer.max_steps
            again = type(schedule)(
                optimizer,
                base_value=2e-3,
                final_value=2e-4,
                total_iters=total,
                warmup_iters=min(100, max(1, total // 5)),
            )
            return [optimizer], [{"scheduler": again, "interval": "step"}]

    PerStep.__name__ = method.__name__
    return PerStep


def training_limits(job: Job, data: Any, folder: Path) -> dict[str, Any]:
    """What ends the training of an iterative method after the seconds given."""
    seconds = job.get("train_seconds")
    if seconds is None:
        return {}
    guard = timedelta(seconds=max(1, round(1.1 * seconds)))
    if not job.get("plan_steps"):
        return {"max_epochs": -1, "max_time": timedelta(seconds=max(1, round(seconds)))}
    # Its learning rate follows the planned number of steps, so a probe finds out how many fit.
    from anomalib.engine import Engine
    from lightning.pytorch.callbacks import Callback

    times: list[float] = []

    class Clock(Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    engine = Engine(
        **quiet(folder),
        limit_val_batches=0,
        max_steps=_PROBE_STEPS,
        max_epochs=-1,
        callbacks=[Clock()],
    )
    engine.fit(build(job), datamodule=data)
    each = (times[-1] - times[_WARM_STEPS - 1]) / (len(times) - _WARM_STEPS)
    steps = max(1, int(seconds / each))
    return {"max_epochs": -1, "max_steps": steps, "max_time": guard}


def watch_coreset(deadline: float) -> dict[str, Any]:
    """Times the coreset selection, keeps its result, and gives up once it cannot end in time."""
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    kept: dict[str, Any] = {}
    select, update = KCenterGreedy.select_coreset_idxs, KCenterGreedy.update_distances

    def remember(self: Any) -> Any:
        kept.update(began=time.perf_counter(), steps=0, size=self.coreset_size)
        indices = select(self)
        kept["seconds"] = time.perf_counter() - kept["began"]
        kept.update(embedding=self.embedding, indices=[int(i) for i in indices])
        return indices

    def watched(self: Any, cluster_center: Any) -> None:
        update(self, cluster_center)
        if kept["steps"] == 0:
            kept["first"] = time.perf_counter()
        kept["steps"] += 1
        passed = time.perf_counter() - kept["first"]
        if passed > _FORESEEN_AFTER:
            needed = passed / (kept["steps"] - 1) * kept["size"]
            if kept["first"] + needed > deadline:
                raise CannotRun(
                    f"over the limit: choosing {kept['size']:,} patches would take "
                    f"{needed / 60:,.0f} minutes, foreseen from the first {kept['steps']}"
                )

    KCenterGreedy.select_coreset_idxs = remember
    KCenterGreedy.update_distances = watched
    return kept


def keep_coreset(coreset: dict[str, Any], out: Path) -> None:
    import numpy as np

    np.savez(
        out / "coreset.npz",
        embedding=coreset["embedding"].numpy().astype(np.float32),
        indices=np.array(coreset["indices"]),
    )


class Outputs:
    """Writes raw maps and scores as they come: the maps of a test split need not fit in memory.

    `maps.npy` (N, H, W) float32 and `scores.npy` (N,) float32, in the order of the job.
    """

    def __init__(self, job: Job) -> None:
        import numpy as np

        self.n = len(job["test"])
        self.size = job["size"]
        self.folder = Path(job["out"])
        self.scores = np.full(self.n, np.nan, np.float32)
        self.file = (self.folder / "maps.npy").open("wb")
        np.lib.format.write_array_header_1_0(
            self.file,
            {"descr": "<f4", "fortran_order": False, "shape": (self.n, self.size, self.size)},
        )
        self.start = self.file.tell()

    def callback(self) -> Any:
        from lightning.pytorch.callbacks import Callback

        outputs = self

        class Keep(Callback):
            def on_predict_batch_end(
                self, trainer: Any, pl_module: Any, found: Any, *_: Any, **__: Any
            ) -> None:
                outputs.add(found)

        return Keep()

    def add(self, batch: Any) -> None:
        maps = batch.anomaly_map.float().reshape(-1, self.size, self.size).numpy()
        scores = batch.pred_score.float().reshape(-1).numpy()
        for path, anomaly_map, score in zip(batch.image_path, maps, scores, strict=True):
            index = int(Path(path).stem)
            self.scores[index] = score
            self.file.seek(self.start + index * anomaly_map.nbytes)
            self.file.write(anomaly_map.tobytes())

    def close(self) -> None:
        import numpy as np

        self.file.close()
        if not np.isfinite(self.scores).all():
            raise CannotRun("the image scores are not all finite numbers")
        np.save(self.folder / "scores.npy", self.scores)


def own_metrics(job: Job, model: Any) -> dict[str, float | None]:
    """Its figures after its post-processing: what its users read."""
    import numpy as np
    import torch
    from anomalib.data import ImageBatch
    from anomalib.metrics import AUPRO, AUROC
    from anomalib.post_processing import PostProcessor

    maps = np.load(Path(job["out"]) / "maps.npy", mmap_mode="r")
    scores = torch.from_numpy(np.load(Path(job["out"]) / "scores.npy"))
    labels = torch.tensor(job["labels"], dtype=torch.bool)
    masks = np.load(job["masks"], mmap_mode="r") if job["masks"] else None

    def batches() -> Any:
        for begin in range(0, len(labels), 32):
            part = slice(begin, begin + 32)
            yield ImageBatch(
                image=torch.zeros(len(labels[part]), 3, 1, 1),
                gt_label=labels[part],
                gt_mask=None if masks is None else torch.from_numpy(np.array(masks[part])),
                pred_score=scores[part],
                anomaly_map=torch.from_numpy(np.array(maps[part])),
            )

    post = PostProcessor()
    for batch in batches():
        post.on_validation_batch_end(None, None, batch)
    post.on_validation_epoch_end(None, None)
    metrics = {
        "image_auroc": AUROC(fields=["pred_score", "gt_label"]),
        "pixel_auroc": AUROC(fields=["anomaly_map", "gt_mask"], strict=False),
        "aupro": AUPRO(fields=["anomaly_map", "gt_mask"], strict=False),
    }
    for batch in batches():
        post.post_process_batch(batch)
        for metric in metrics.values():
            metric.update(batch)
    values = {name: metric.compute() for name, metric in metrics.items()}
    return {name: None if v is None else float(v) for name, v in values.items()}


if __name__ == "__main__":
    main()

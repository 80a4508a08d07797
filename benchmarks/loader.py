"""Images a second of the training loader, against torchvision's reference pipeline for detection on the same files.

    uv run python benchmarks/loader.py [--dataset FOLDER] [--workers 0 2] [--images 96] [--batch 8] [--repeats 7]

Decode, flip (p = 0.5), float in 0..1, collate; ours also hashes each file, as it does for registered datasets. The
reference is put together from the installed torchvision as its `references/detection` does it with `--use-v2`:
CocoDetection, wrap_dataset_for_transforms_v2, its `hflip` preset, and its collate function. Epochs of the two take
turns; both keep their worker processes, which are started before. The files are made from scikit-learn's photographs
(640 x 480, JPEG of quality 90, 8 boxes each), or are those of FOLDER (train.json and train/). The target is a ratio of
at least 1.0.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection as TorchvisionCoco
from torchvision.datasets import wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from tid_core.data.coco import CocoDetection
from tid_core.data.loader import EpochLoader, to_device
from tid_core.plan import SplitPaths
from tid_core.spec import DataSpec

TARGET = 1.0
WIDTH, HEIGHT, BOXES = 640, 480, 8
Epoch = Callable[[int], Iterator[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="a folder with train.json and train/")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--images", type=int, default=96, help="to make, without --dataset")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = options.dataset or make_photos(Path(folder), options.images)
        split = SplitPaths(images=root / "train", annotations=root / "train.json")
        print(f"{root if options.dataset else 'photographs of 640 x 480'}, batches of {options.batch}")
        for workers in options.workers:
            compare(split, workers, options.batch, options.repeats)


def make_photos(root: Path, count: int) -> Path:
    """`count` pieces of two photographs, each with its own crop and noise, so that no two files are alike."""
    random = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    (root / "train").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        photo = photos[i % len(photos)]
        width, height = (round(side * random.uniform(0.7, 1.0)) for side in photo.size)
        left, top = (int(random.integers(room + 1)) for room in (photo.width - width, photo.height - height))
        piece = photo.resize((WIDTH, HEIGHT), box=(left, top, left + width, top + height))
        pixels = np.asarray(piece) + random.normal(0, 3, (HEIGHT, WIDTH, 3))
        file = root / "train" / f"{i}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()  # as an index has it, for ours to verify
        images.append({"id": i + 1, "file_name": file.name, "width": WIDTH, "height": HEIGHT, "sha256": digest})
        for _ in range(BOXES):
            x, y = random.uniform(0, WIDTH / 2), random.uniform(0, HEIGHT / 2)
            w, h = random.uniform(16, WIDTH / 2), random.uniform(16, HEIGHT / 2)
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "train.json").write_text(json.dumps(content))
    return root


def compare(split: SplitPaths, workers: int, batch: int, repeats: int) -> None:
    loader = EpochLoader(
        CocoDetection(split, None, DataSpec(flip=0.5), train=True), batch_size=batch, workers=workers, pin_memory=False
    )
    epochs: dict[str, Epoch] = {
        # Only a GPU gets bytes; on the CPU the pixels become floats here, as the reference's do in its transform.
        "ours": lambda epoch: (to_device(each, torch.device("cpu")) for each in loader.epoch(epoch)),
        "reference": reference(split, workers, batch),
    }
    print(f"  {workers} workers, median of {repeats} epochs:")
    wall, cpu = time_in_turn(epochs, repeats)
    loader.close()
    tell(wall, "images/s")
    if workers == 0:  # where all of the work is in this process, and other work on the machine counts less
        tell(cpu, "images per second of CPU")


def time_in_turn(epochs: dict[str, Epoch], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Images a second of each epoch: by the clock, and by this process's own CPU time."""
    wall: dict[str, list[float]] = {name: [] for name in epochs}
    cpu: dict[str, list[float]] = {name: [] for name in epochs}
    for repeat in range(repeats + 1):
        for name, epoch in epochs.items():
            start, used = perf_counter(), process_time()
            images = sum(len(pictures) for pictures, _ in epoch(repeat))
            if repeat:  # the first starts the workers and reads the files for the first time
                wall[name].append(images / (perf_counter() - start))
                cpu[name].append(images / (process_time() - used))
    return wall, cpu


def tell(speeds: dict[str, list[float]], unit: str) -> None:
    for name, values in speeds.items():
        print(f"    {name:9}  {median(values):7.1f} {unit}  ({min(values):.1f} to {max(values):.1f})")
    ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds["reference"], strict=True)]
    print(f"    ratio      {median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f}; target >= {TARGET:.1f})")


def reference(split: SplitPaths, workers: int, batch: int) -> Epoch:
    """torchvision's `references/detection/train.py --use-v2 --data-augmentation hflip`."""
    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(p=0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.ConvertBoundingBoxFormat("XYXY"),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    dataset = TorchvisionCoco(split.images, split.annotations, transforms=transforms)
    loader: DataLoader[Any] = DataLoader(
        wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "image_id")),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_collate,
    )
    return lambda epoch: iter(loader)  # noqa: ARG005 - shuffles by itself


def _collate(samples: list[Any]) -> Any:
    return tuple(zip(*samples, strict=True))


if __name__ == "__main__":
    main()

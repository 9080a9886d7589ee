"""Batches: the same draw of views whoever makes them, failures reported, the views of the next batch made ahead."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.data.folder import FolderOrder, FolderSource, scan_folder
from train.data.images import DataError
from train.data.loader import Batch, PairDataset, StepSampler, collate_drawn, made_on_device, make_batches
from train.recipe import RecipeError, Views, load_recipe

pytestmark = pytest.mark.slow

RECORDS, STEPS = 3, 4
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Smooth shapes: plain noise would show every rounding."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    for index in range(4):
        for folder in ("real", "fake/gan"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            photo(90 + 30 * index, 120, 2 * index + len(folder)).save(tmp_path / folder / f"{index}.png")
    return scan_folder(tmp_path)[0]


def batches(source: FolderSource, made_on: str, device: str, *overrides: str, workers: int = 0) -> list[Batch]:
    views = [f"views.made_on={made_on}", "views.local_size_px=96", *overrides]
    recipe = load_recipe("smoke", [f"data.workers={workers}", *views])
    return list(make_batches(source, recipe, StepSampler(RECORDS, 1, STEPS, 1), torch.device(device)))


@DEVICES
def test_views_made_on_the_device_are_those_of_the_data_processes(source: FolderSource, device: str) -> None:
    """Batch for batch the same views, within a grey level on average, whether workers or the training device
    make them.
    """
    here, there = batches(source, "workers", "cpu"), batches(source, "device", device)
    assert len(here) == len(there) == STEPS
    differences = []
    for one, other in zip(here, there, strict=True):
        assert list(one.views) == list(other.views)
        for name, views in one.views.items():
            assert other.views[name].device.type == device and other.views[name].shape == views.shape
            differences.append((other.views[name].cpu().int() - views.int()).abs().float().mean().item())
    assert np.mean(differences) < 0.5 and np.max(differences) < 4


def test_a_history_is_in_the_views_of_both_classes(source: FolderSource) -> None:
    """With `views.jpeg_history` every clean view, real or not, has been a JPEG of that quality."""
    plain, saved = batches(source, "workers", "cpu"), batches(source, "workers", "cpu", "views.jpeg_history=[5, 5]")
    for name in ("real", "fake"):
        assert all(
            (one.views[name].int() - other.views[name].int()).abs().float().mean() > 1
            for one, other in zip(plain, saved, strict=True)
        )


def test_data_processes_hand_over_what_this_process_would(source: FolderSource) -> None:
    """With views made on the device too, the number of data processes changes no pixel."""
    alone, helped = batches(source, "device", "cpu"), batches(source, "device", "cpu", workers=2)
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(one.views[name], other.views[name]) for name in one.views)


@pytest.mark.parametrize("made_on", ["workers", "device"])
def test_unreadable_records_are_named(source: FolderSource, made_on: str, tmp_path: Path) -> None:
    """A file that breaks after the scan is replaced by the next record and reported, whoever makes the views."""
    (tmp_path / "real" / "0.png").write_bytes(b"no image any more")
    made = batches(source, made_on, "cpu")
    failed = [line for batch in made for line in batch.failed]
    assert failed and all("not an image" in line for line in failed)
    assert all(len(views) == RECORDS for batch in made for views in batch.views.values())


@pytest.mark.parametrize(("made_on", "workers"), [("device", 0), ("workers", 0), ("workers", 1), ("device", 1)])
def test_data_that_cannot_be_read_are_one_line(
    source: FolderSource, made_on: str, workers: int, tmp_path: Path
) -> None:
    """What goes wrong in the thread that works ahead, or in a data process, is raised in one line where the batch is
    asked for.
    """
    for path in (tmp_path / "real").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"^50 records in a row cannot be read, the last: .*empty file$"):
        batches(source, made_on, "cpu", workers=workers)


def test_the_device_makes_views_only_where_it_is_a_gpu_or_told_to() -> None:
    """`auto` is the data processes on a CPU and for the PIL reference, the device on a GPU; the reference on a device
    is refused.
    """
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [made_on_device(Views(), device) for device in (cpu, gpu)] == [False, True]
    assert not made_on_device(Views(fast=False), gpu) and not made_on_device(Views(made_on="workers"), gpu)
    assert made_on_device(Views(made_on="device"), cpu)
    with pytest.raises(RecipeError, match=r"views\.made_on"):
        made_on_device(Views(made_on="device", fast=False), gpu)


def test_images_travel_to_the_device_as_one_tensor(source: FolderSource) -> None:
    """A batch whose views the device makes is one tensor between processes, whatever the number of its images: each
    tensor would take a file descriptor.
    """
    recipe = load_recipe("smoke", ["views.made_on=device"])
    data = PairDataset(source, recipe.views, recipe.loss.terms, 1, draw_only=True)
    batch = collate_drawn([data[(0, index)] for index in range(4)])
    assert sum(isinstance(value, torch.Tensor) for value in vars(batch).values()) == 1
    assert batch.pixels.numel() == sum(math.prod(size) for sizes in batch.sizes for size in sizes.values())


def test_data_processes_are_told_the_order(source: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them computes it: at D3's size that takes each of them hundreds of megabytes."""
    here, order = os.getpid(), source.order

    def asked(epoch: int, seed: int) -> FolderOrder:
        assert os.getpid() == here, "a data process computed the order"
        return order(epoch, seed)

    monkeypatch.setattr(source, "order", asked)
    assert len(batches(source, "workers", "cpu", workers=2)) == STEPS

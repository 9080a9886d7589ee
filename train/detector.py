"""A detector's folder (triton_models/detector.py) from a frozen backbone and labelled images, or from a weights folder.

python -m train.main heads --backbone onnx:mine/backbone.onnx --data TRAIN --out DETECTOR
python -m train.main heads --backbone timm:vit_small_patch16_384 --data TRAIN --out DETECTOR
python -m train.main export --weights WEIGHTS --detector DETECTOR

Heads are fitted on what the served graph will compute: Pillow's view, the backbone by ONNX Runtime. What it says of the
fixed pictures is kept (`expected.json`), and every served form is compared with it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score
from timm.data.config import resolve_data_config
from torch import nn

from train.data.images import DataError, decode_image
from train.data.records import Labelled, held_out, photograph
from train.fitted import fitted_on
from train.heads import Heads
from train.model import timm_backbone
from train.progress import counting
from train.recipe import HeadFit
from triton_models import detector, reference, weights
from triton_models.detector import EXPECTED_FILE, SPEC_FILE, View
from triton_models.detector_graph import is_quantised
from triton_models.weights import ENCODER_FILE, HEADS, HEADS_FILE, WeightsError

BACKBONE_FILE = "backbone.onnx"
BATCH = 16
OPSET = 18
CARD = "card.json"


@dataclass
class Seen:
    """A backbone by ONNX Runtime, and the view that it is shown."""

    path: Path
    view: View
    mean: tuple[float, ...]
    std: tuple[float, ...]
    output: str = ""
    session: Any = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        except Exception as error:  # of types that ONNX Runtime does not export
            raise WeightsError(f"{self.path}: no usable ONNX graph ({str(error).splitlines()[0][:160]})") from error
        names = [one.name for one in self.session.get_outputs()]
        self.output = self.output or names[0]
        if self.output not in names:
            raise WeightsError(f"{self.path}: no output {self.output!r}; there are {', '.join(names)}")
        # Where activations are quantised by a whole tensor, what is beside an image would change its embedding.
        self.rows = 1 if is_quantised(onnx.load(str(self.path), load_external_data=False)) else BATCH

    def embed(self, views: np.ndarray) -> np.ndarray:
        """float32 [N, D] of views uint8 [N, H, W, 3]."""
        given = self.session.get_inputs()[0]
        if "uint8" not in given.type:
            mean, std = (np.array(numbers, dtype=np.float32) for numbers in (self.mean, self.std))
            planes = (views.astype(np.float32) / np.float32(255) - mean) / std
            views = np.ascontiguousarray(planes.transpose(0, 3, 1, 2))
        rows = [
            self.session.run([self.output], {given.name: views[start : start + self.rows]})[0]
            for start in range(0, len(views), self.rows)
        ]
        found: np.ndarray = np.concatenate(rows).reshape(len(views), -1)
        return found


def make_detector(
    backbone: str,
    images: list[Labelled],
    recipe: HeadFit,
    out: Path,
    heads: Sequence[str] = HEADS,
    *,
    say: Callable[[str], object] = str,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fit `heads` on the frozen `backbone` (`onnx:FILE`, whose detector.toml stands beside it, or `timm:NAME`), and
    write a detector's folder `out`; returns its card.

    Raises WeightsError for the backbone, DataError for the images or an `out` that is in use.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: name a new folder")
    if unknown := [head for head in heads if head not in HEADS]:
        raise WeightsError(f"--head {unknown[0]}: there are {', '.join(HEADS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "detector"
        made.mkdir()
        spec, seen = _opened(backbone, made, out.name)
        embeddings, labels, kept = _embedded(seen, images, say, console)
        card = _fit(made, embeddings, labels, kept, recipe, tuple(heads))
        spec["heads"] = list(heads)
        _write_spec(made / SPEC_FILE, spec, seen)
        loaded = detector.load(made)
        write_expected(loaded, seen.embed)
        card = {"name": spec["name"], "model_version": loaded.version, "backbone": backbone, **card}
        (made / CARD).write_text(json.dumps(card, indent=2) + "\n")
        put(made, out)
    return card


def export_detector(source: Path, out: Path, *, crops: str = "", aggregate: str = "mean") -> dict[str, Any]:
    """A weights folder of CoDE, or a detector's folder, as a detector's folder `out`; returns its card. `crops`: it
    looks at several of them (`grid:4`, `texture:4`), and `aggregate` makes one score of theirs.

    Raises WeightsError for what is wrong with `source`, or an `out` that is in use.
    """
    if out.exists() and any(out.iterdir()):
        raise WeightsError(f"{out} is not empty: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "detector"
        made.mkdir()
        if (source / SPEC_FILE).is_file():
            detector.load(source).expected()
            for path in source.iterdir():
                if path.is_file():
                    shutil.copyfile(path, made / path.name)
            spec: dict[str, Any] = tomllib.loads((source / SPEC_FILE).read_text(encoding="utf-8"))
        else:
            weights.load(source)
            for name in (ENCODER_FILE, HEADS_FILE, *weights.CARD_FILES):
                if (source / name).is_file():
                    shutil.copyfile(source / name, made / name)
            spec = {"name": name_after(out.name), "licence": "as of the weights", "heads": list(HEADS)}
            spec |= {"view": {"crop": weights.IMAGE_PX}, "backbone": {"kind": "code"}}
            (made / SPEC_FILE).write_text(toml(spec))
        if crops:
            spec |= {"name": name_after(out.name), "aggregate": aggregate, "view": {**spec["view"], "crops": crops}}
            (made / SPEC_FILE).write_text(toml(spec))
        loaded = detector.load(made)
        if loaded.graph is None:
            write_expected(loaded, lambda views: reference.embeddings(loaded.whole, views))
        elif crops:
            read = loaded.spec
            write_expected(loaded, Seen(loaded.graph, read.view, read.mean, read.std, read.output).embed)
        card = json.loads((made / CARD).read_text()) if (made / CARD).is_file() else {}
        card |= {"name": loaded.spec.name, "model_version": loaded.version}
        (made / CARD).write_text(json.dumps(card, indent=2) + "\n")
        put(made, out)
    return card


def _opened(backbone: str, made: Path, name: str) -> tuple[dict[str, Any], Seen]:
    """The description to write, and the backbone, which is copied or exported into `made`."""
    kind, _, where = backbone.partition(":")
    target = made / BACKBONE_FILE
    if kind == "timm":
        spec = _exported(where, target) | {"name": name_after(name), "licence": f"as of timm's {where}"}
    elif kind == "onnx":
        path = Path(where)
        description = path.parent / SPEC_FILE
        if not path.is_file() or not description.is_file():
            missing = path if not path.is_file() else description
            raise WeightsError(f"{missing} is not there: a graph needs a {SPEC_FILE} beside it (docs/detectors.md)")
        try:
            spec = tomllib.loads(description.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WeightsError(f"{description}: not readable ({error})") from error
        shutil.copyfile(path, target)
    else:
        raise WeightsError(f"--backbone {backbone}: timm:NAME or onnx:FILE is expected")
    spec = {"heads": list(HEADS), **spec}
    spec["backbone"] = {**spec.get("backbone", {}), "kind": "onnx", "file": BACKBONE_FILE}
    spec["backbone"].pop("package", None)
    spec["backbone"]["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
    (made / SPEC_FILE).write_text(toml(spec))
    read = detector.read_spec(made / SPEC_FILE)
    return spec, Seen(target, read.view, read.mean, read.std, read.output)


def _exported(name: str, target: Path) -> dict[str, Any]:
    """The description of a timm model, whose graph is written to `target`; its weights are pretrained ones."""
    made = timm_backbone(name)
    config = resolve_data_config({}, model=made.module)  # type: ignore[no-untyped-call]
    height, width = (int(side) for side in config["input_size"][-2:])
    write_graph(made.module, (height, width), target)
    share, mode = float(config["crop_pct"]), str(config["interpolation"])
    resize = {"shorter": int(height / share)} if height == width else {"to": [height, width]}
    view = {"resize": resize, "interpolation": mode} | ({"crop": height} if height == width else {})
    return {"view": view, "backbone": {"mean": list(config["mean"]), "std": list(config["std"])}}


def write_graph(module: nn.Module, size: tuple[int, int], target: Path) -> None:
    """`module` as an ONNX graph: float32 [N, 3, H, W] of `size` (H, W), normalised -> embeddings [N, D]."""
    # The older exporter: it needs no further package.
    torch.onnx.export(
        module.eval().cpu(),
        (torch.zeros(1, 3, *size),),
        str(target),
        dynamo=False,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["embedding"],
        dynamic_axes={"pixels": {0: "N"}, "embedding": {0: "N"}},
    )


def _embedded(
    seen: Seen, images: Sequence[Labelled], say: Callable[[str], object], console: Console | None
) -> tuple[np.ndarray, np.ndarray, list[Labelled]]:
    """Embeddings [N, D], labels [N] and the images that could be read."""
    rows: list[np.ndarray] = []
    kept: list[Labelled] = []
    with counting(console, "images for the heads", len(images)) as advance:
        for image in images:
            try:
                pixels = np.asarray(decode_image(image.key.read()).convert("RGB"))
                rows.append(seen.embed(seen.view.make(pixels)[None])[0])
                kept.append(image)
            except (OSError, ValueError) as error:
                say(f"left out: {image.key.path}: {error}")
            advance(1)
    if not rows:
        raise DataError("no image could be read")
    return np.stack(rows), np.array([image.label for image in kept], dtype=np.int64), kept


def _fit(
    made: Path,
    embeddings: np.ndarray,
    labels: np.ndarray,
    images: list[Labelled],
    recipe: HeadFit,
    wanted: tuple[str, ...],
) -> dict[str, Any]:
    """Write the heads; the card with counts, and each head's AUC on photographs held out of a fit of its own."""
    apart = np.array([held_out(f"calibration {photograph(image)}", 0.2) for image in images], dtype=bool)
    card: dict[str, Any] = {
        "images": {"real": int((labels == 0).sum()), "fake": int((labels == 1).sum())},
        "fitted_on": {"heads": fitted_on(images)},
    }
    try:
        if len({*labels[apart]}) == 2 and len({*labels[~apart]}) == 2:
            scores = Heads.fit(embeddings[~apart], labels[~apart], recipe).scores(embeddings[apart])
            card["held_out_auc"] = {
                head: round(float(roc_auc_score(labels[apart], scores[:, HEADS.index(head)])), 4) for head in wanted
            }
        arrays = Heads.fit(embeddings, labels, recipe).arrays
    except ValueError as error:
        raise DataError(str(error)) from error
    kept = {name: np.ascontiguousarray(array) for name, array in arrays.items() if name.split(".")[0] in wanted}
    save_file(kept, made / HEADS_FILE)
    return card


def write_expected(loaded: detector.Detector, embed: Callable[[np.ndarray], np.ndarray]) -> None:
    """What the detector says of the fixed pictures by this path."""
    views = [loaded.spec.view.make(picture) for picture in detector.pictures()]
    rows = [embed(loaded.spec.view.apart(view[None])) for view in views]
    scores = detector.reference_scores(loaded, np.concatenate(rows))
    said = {head: [float(f"{value:.9g}") for value in scores[:, at]] for at, head in enumerate(loaded.spec.heads)}
    (loaded.folder / EXPECTED_FILE).write_text(json.dumps({"scores": said}, indent=1) + "\n")


def _write_spec(path: Path, spec: dict[str, Any], seen: Seen) -> None:
    spec["backbone"]["output"] = seen.output
    path.write_text(toml(spec))


def put(made: Path, out: Path) -> None:
    """A finished folder in its place."""
    if out.exists():
        out.rmdir()
    shutil.move(made, out)


def name_after(folder: str) -> str:
    """A name that a detector may have, after its folder."""
    name = "".join(letter if letter.isalnum() else "_" for letter in folder.lower())[:32]
    return name if detector.NAME.fullmatch(name) and name != "code" else f"detector_{name}"[:32]


def toml(table: dict[str, Any], prefix: str = "") -> str:
    """Texts, numbers, lists of them and tables; JSON's forms of the first three are TOML's too."""
    inside = {key: value for key, value in table.items() if isinstance(value, dict) and key != "resize"}
    text = "".join(f"{key} = {_value(value)}\n" for key, value in table.items() if key not in inside)
    for key, value in inside.items():
        text += f"\n[{prefix}{key}]\n" + toml(value, f"{prefix}{key}.")
    return text


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)

"""A detector's folder: all that is needed to serve another model beside `code`. No pickle, no torch.

    detector.toml          name, licence, view, heads, backbone (`Spec`)
    encoder.safetensors    the backbone, where it is CoDE's
    *.onnx                 or an ONNX graph; or the package of a registry that has it, by version and SHA-256
    heads.safetensors      linear, knn and svm arrays as of triton_models/weights.py, for any width; those served
    expected.json          scores of `pictures()` by who fitted the heads: what every form is compared with
    card.json, README.md   what it is, what it was fitted on, how good it is

`train.main export --detector` writes one, `triton_models.build --detector` serves it, `triton_models.verify` compares.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models import weights
from triton_models.weights import HEAD_SHAPES, HEADS, HEADS_FILE, MEAN, STD, Array, WeightsError

SPEC_FILE, EXPECTED_FILE = "detector.toml", "expected.json"
FOLDER = "detector"  # its copy inside the repository, where Triton does not look
MAX_SIDE_PX = 1024
MAX_CROPS = 16
AGGREGATES = ("mean", "median", "max")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_RESERVED = ("code",)
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """How an image becomes pixels, as torchvision's Resize and CenterCrop do it (the server's parameter `view`).

    `crops`: `grid:N` or `texture:N`, several crops of the image at native size, one below the other
    (worker/examine/crops.py says which).
    """

    resize: dict[str, Any] | None
    interpolation: str
    crop: int | None
    crops: str = ""

    @property
    def count(self) -> int:
        """Crops of an image."""
        return int(self.crops.partition(":")[2] or 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        if self.crop is not None:
            return self.crop * self.count, self.crop
        assert self.resize is not None, "a view without a crop has a size"
        height, width = self.resize["to"]
        return int(height), int(width)

    def to_json(self) -> str:
        fields = {"resize": self.resize, "interpolation": self.interpolation, "crop": self.crop}
        return json.dumps(fields | ({"crops": self.crops} if self.crops else {}))

    def apart(self, made: Images) -> Images:
        """Views uint8 [N, H, W, 3] as what the backbone sees: a row for each crop."""
        return made.reshape(-1, made.shape[1] // self.count, *made.shape[2:])

    def make(self, picture: Images) -> Images:
        """Of a picture uint8 [H, W, 3]; black where it is smaller than a native crop. Needs Pillow."""
        from PIL import Image  # noqa: PLC0415 - Triton's image needs none

        image = Image.fromarray(picture)
        if self.resize is not None:
            image = image.resize(self._resized(*image.size), Image.Resampling[self.interpolation.upper()])
        if self.crops:
            return np.concatenate([self._central(one) for one in self._crops(image)])
        return self._central(image)

    def _central(self, image: Any) -> Images:
        if self.crop is not None:
            # torchvision's offsets: half to even where cut, to the left and top where padded.
            left, top = (
                round((side - self.crop) / 2) if side >= self.crop else -((self.crop - side) // 2)
                for side in image.size
            )
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(image)

    def _crops(self, image: Any) -> list[Any]:
        """Images of at most the crop's size."""
        px, count = self.crop or 0, self.count
        parts = [min(px, length) for length in image.size]
        if self.crops.startswith("grid"):
            side = round(count**0.5)
            steps = [[round(max(length - px, 0) * at / (side - 1)) for at in range(side)] for length in image.size]
            corners = [(left, top) for top in steps[1] for left in steps[0]]
        else:
            fit = [max(length // px, 1) for length in image.size]
            first = [max(round((length - px * many) / 2), 0) for length, many in zip(image.size, fit, strict=True)]
            tiles = [(first[0] + px * x, first[1] + px * y) for y in range(fit[1]) for x in range(fit[0])]
            detail = []
            for left, top in tiles:
                tile = image.crop((left, top, left + parts[0], top + parts[1]))
                grey = (np.asarray(tile, np.int64) * (77, 150, 29)).sum(axis=2)
                bent = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
                detail.append(float(np.abs(bent).mean()) if min(parts) > 2 else 0.0)
            best = sorted(range(len(tiles)), key=lambda tile: -detail[tile])
            corners = [tiles[best[number % len(best)]] for number in range(count)]
        return [image.crop((left, top, left + parts[0], top + parts[1])) for left, top in corners]

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        assert self.resize is not None
        if "to" in self.resize:
            return self.resize["to"][1], self.resize["to"][0]
        shorter = int(self.resize["shorter"])
        longer = int(shorter * max(width, height) / min(width, height))
        return (shorter, longer) if width <= height else (longer, shorter)


@dataclass(frozen=True)
class Package:
    """Where a backbone's file can be had: a wheel of a Python package registry, read as data and never imported."""

    name: str
    version: str
    path: str


@dataclass(frozen=True)
class Spec:
    """`detector.toml`. `backbone`: `code` or `onnx`; `file` and `sha256` of the graph, `output` the embedding's name.

    `mean` and `std`, red green blue on a scale of 0 to 1: of a graph that takes float32 [N, 3, H, W]; one that takes
    uint8 [N, H, W, 3] gets the view as it is. `aggregate`: of several crops, how their scores become one.
    """

    name: str
    licence: str
    view: View
    heads: tuple[str, ...]
    backbone: str
    file: str = ""
    sha256: str = ""
    output: str = ""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    package: Package | None = None
    aggregate: str = ""


@dataclass(frozen=True)
class Detector:
    """A folder that was checked. `graph`: the backbone's file, None for CoDE's encoder."""

    folder: Path
    spec: Spec
    heads: dict[str, npt.NDArray[np.generic]]
    graph: Path | None
    encoder: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """12 hex digits over what decides its scores: backbone, view, normalisation, heads; neither name nor card."""
        spec = self.spec
        meaning: list[object] = [
            spec.view.to_json(),
            spec.heads,
            spec.backbone,
            spec.sha256,
            spec.output,
            spec.mean,
            spec.std,
        ]
        meaning += [spec.aggregate] if spec.aggregate else []
        digest = hashlib.sha256(b"assay detector 1\n" + json.dumps(meaning).encode() + b"\n")
        for name, array in sorted({**self.heads, **self.encoder}.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    @property
    def width(self) -> int:
        """Of an embedding."""
        first = {"linear": "linear.coef", "knn": "knn.bank", "svm": "svm.support_vectors"}[self.spec.heads[0]]
        return int(self.heads[first].shape[-1])

    @property
    def whole(self) -> weights.Weights:
        """Heads (and CoDE's encoder) as the graphs and the float64 reference take them."""
        return weights.Weights(self.encoder, self.heads)

    def expected(self) -> Array:
        """Scores [N, K] of `pictures()` as they were when the heads were fitted. Raises WeightsError."""
        path = self.folder / EXPECTED_FILE
        try:
            found = json.loads(path.read_text())["scores"]
            return np.array([found[head] for head in self.spec.heads], dtype=np.float64).T
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path}: not readable ({error}); export the detector again") from error


def load(folder: Path, graph: Path | None = None) -> Detector:
    """The detector in `folder`. `graph`: its backbone, where that is not in the folder.

    Raises WeightsError naming the file and what is wrong with it.
    """
    spec = read_spec(folder / SPEC_FILE)
    heads = _load_heads(folder / HEADS_FILE, spec.heads)
    if spec.backbone == "code":
        return Detector(folder, spec, heads, None, weights.load_encoder(folder))
    path = graph or folder / spec.file
    if not path.is_file():
        where = (
            f"it is {spec.package.path} of {spec.package.name} {spec.package.version}" if spec.package else "copy it"
        )
        raise WeightsError(f"{path}: the backbone is missing; {where}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != spec.sha256:
        raise WeightsError(f"{path}: SHA-256 is {found[:12]}…, {SPEC_FILE} says {spec.sha256[:12]}…: another file")
    return Detector(folder, spec, heads, path)


def version_of(folder: Path) -> str:
    """The version of the detector in `folder`, whose graph need not be there. Raises WeightsError."""
    spec = read_spec(folder / SPEC_FILE)
    encoder = weights.load_encoder(folder) if spec.backbone == "code" else {}
    return Detector(folder, spec, _load_heads(folder / HEADS_FILE, spec.heads), None, encoder).version


def read_spec(path: Path) -> Spec:
    """`detector.toml`. Raises WeightsError naming the field."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable ({error})") from error
    try:
        return _spec(document)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise WeightsError(f"{path}: {what}") from error


def _spec(document: dict[str, Any]) -> Spec:
    _known("", document, {"name", "licence", "heads", "view", "backbone", "aggregate"})
    name, heads, backbone = document["name"], tuple(document["heads"]), document["backbone"]
    if not NAME.fullmatch(name) or name in _RESERVED:
        raise ValueError(f"name is {name!r}; lower-case letters, digits and _ are expected, and another one than code")
    if not heads or len({*heads}) < len(heads) or not {*heads} <= {*HEADS}:
        raise ValueError(f"heads are {list(heads)}; some of {', '.join(HEADS)} are expected")
    _known("backbone.", backbone, {"kind", "file", "sha256", "output", "mean", "std", "package"})
    kind = backbone["kind"]
    if kind not in ("code", "onnx"):
        raise ValueError(f"backbone.kind is {kind!r}; code or onnx is expected")
    if kind == "onnx" and not re.fullmatch(r"[0-9a-f]{64}", backbone.get("sha256", "")):
        raise ValueError("backbone.sha256: 64 hex digits of the graph's file are expected")
    if "/" in backbone.get("file", ""):
        raise ValueError("backbone.file: a name inside the folder is expected")
    mean, std = (tuple(map(float, backbone.get(key, default))) for key, default in (("mean", MEAN), ("std", STD)))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError("backbone.mean and backbone.std: three numbers each are expected, std above 0")
    package, view, aggregate = backbone.get("package"), _view(document["view"]), document.get("aggregate", "")
    if bool(view.crops) != (aggregate in AGGREGATES):
        raise ValueError(f"aggregate is {aggregate!r}; with view.crops one of {', '.join(AGGREGATES)}, else none")
    return Spec(
        name,
        document["licence"],
        view,
        heads,
        kind,
        file=backbone.get("file", "") if kind == "code" else backbone["file"],
        sha256=backbone.get("sha256", ""),
        output=backbone.get("output", ""),
        mean=mean,
        std=std,
        package=Package(package["name"], package["version"], package["path"]) if package else None,
        aggregate=aggregate,
    )


def _view(fields: dict[str, Any]) -> View:
    _known("view.", fields, {"resize", "interpolation", "crop", "crops"})
    resize, crop, interpolation = fields.get("resize"), fields.get("crop"), fields.get("interpolation", "bicubic")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"view.interpolation is {interpolation!r}; one of {', '.join(INTERPOLATIONS)} is expected")
    sides = [crop] if crop is not None else []
    sides += (resize.get("to") or [resize.get("shorter")]) if resize is not None else []
    if not sides or any(not isinstance(side, int) or not 1 <= side <= MAX_SIDE_PX for side in sides):
        raise ValueError(f"view: resize and crop in pixels from 1 to {MAX_SIDE_PX} are expected")
    if resize is not None and ({*resize} not in ({"shorter"}, {"to"}) or ("shorter" in resize and crop is None)):
        raise ValueError("view.resize is {shorter = N}, with a crop, or {to = [H, W]}")
    crops = fields.get("crops", "")
    if crops:
        kind, _, number = str(crops).partition(":")
        count = int(number) if number.isdecimal() and len(number) < 4 else 0
        if (
            kind not in ("grid", "texture")
            or not 2 <= count <= MAX_CROPS
            or (kind == "grid" and count not in (4, 9, 16))
        ):
            raise ValueError(f"view.crops is {crops!r}; grid:4, grid:9, grid:16 or texture:2 to texture:16 is expected")
        if resize is not None or crop is None:
            raise ValueError("view.crops are of the image at its native size: no resize, and a crop in pixels")
    return View(resize, interpolation, crop, crops)


def _known(prefix: str, table: dict[str, Any], names: set[str]) -> None:
    if unknown := sorted({*table} - names):
        raise ValueError(f"{prefix}{unknown[0]} is unknown; there are {', '.join(sorted(names))}")


def _load_heads(path: Path, wanted: tuple[str, ...]) -> dict[str, npt.NDArray[np.generic]]:
    arrays = weights.read(path)
    shapes = {name: shape for name, shape in HEAD_SHAPES.items() if name.split(".")[0] in wanted}
    heads = {name: array for name, array in arrays.items() if name in shapes}
    if missing := [name for name in shapes if name not in heads]:
        raise WeightsError(f"{path}: {missing[0]} is missing, of a head that {SPEC_FILE} names")
    widths = {heads[name].shape[-1] for name, shape in shapes.items() if shape[-1] == weights.WIDTH}
    if len(widths) > 1:
        raise WeightsError(
            f"{path}: its heads are for embeddings of {sorted(widths)} numbers; of one width is expected"
        )
    for name, shape in shapes.items():
        if heads[name].ndim != len(shape) or not np.isfinite(heads[name].astype(np.float64)).all():
            raise WeightsError(f"{path}: {name} has {heads[name].ndim} dimensions, or numbers that are NaN or infinite")
    if "knn" in wanted and {*np.unique(heads["knn.labels"]).tolist()} != {weights.REAL, weights.FAKE}:
        raise WeightsError(f"{path}: knn.labels must hold both 0 (real) and 1 (fake) and nothing else")
    return {name: array.astype(np.int64 if name == "knn.labels" else np.float64) for name, array in heads.items()}


def pictures(count: int = 8, seed: int = 14) -> list[Images]:
    """The fixed set, uint8 [H, W, 3] of several sizes, made of whole numbers alone: the same everywhere.

    Blocks of colour over grain, no two channels alike, so that a swapped channel, another filter, a crop that is off by
    one or a missing normalisation shows.
    """
    rng = np.random.default_rng(seed)
    sizes = [(300, 400), (512, 384), (225, 225), (640, 427), (333, 500), (450, 800), (1024, 768), (224, 224)]
    made: list[Images] = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        total = np.zeros((height, width, 3), np.int64)
        for side in (96, 29, 7, 1):
            blocks = rng.integers(0, 256, (-(-height // side), -(-width // side), 3))
            total += np.repeat(np.repeat(blocks, side, axis=0), side, axis=1)[:height, :width]
        level = rng.integers(-60, 60, 3)
        made.append(np.clip(total // 4 + level, 0, 255).astype(np.uint8))
    return made


def reference_scores(detector: Detector, embeddings: npt.ArrayLike) -> Array:
    """Scores [N, K] in float64, as the contract defines them; see triton_models.weights.reference_scores.

    `embeddings`: a row for each crop, those of an image one after the other.
    """
    scores = weights.reference_scores(detector.whole, embeddings, detector.spec.heads)
    by_image = scores.reshape(-1, detector.spec.view.count, scores.shape[1])
    found: Array = getattr(np, detector.spec.aggregate or "mean")(by_image, axis=1)
    return found

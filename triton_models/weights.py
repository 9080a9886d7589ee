"""A weights folder: what training writes, and all that a model repository is built from. No pickle, no torch.

    encoder.safetensors   ViT-Tiny/16 under timm's names, float16 or float32 (computed in float32)
    heads.safetensors     the arrays of `HEAD_SHAPES`, float32 or float64
    groups.json           optional: a JSON list, for each row of the 1-NN bank the source or generator it came from
    card.json, README.md  what the weights are and how good; neither is read here

`load` checks everything that can be wrong with a folder and names file and tensor. The scorer at the end is the float64
reference that the graphs, the server and the plans are compared with.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[np.generic]]

ENCODER_NAME = "vit_tiny_patch16_224"  # timm's
ENCODER_FILE = "encoder.safetensors"
HEADS_FILE = "heads.safetensors"
GROUPS_FILE = "groups.json"
CARD_FILES = ("card.json", "README.md")
MAX_GROUP_CHARACTERS = 256  # of a name in a verdict
WIDTH, DEPTH, ATTENTION_HEADS, PATCH_PX, IMAGE_PX = 192, 12, 3, 16, 224
TOKENS = (IMAGE_PX // PATCH_PX) ** 2 + 1
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, red green blue, on a scale of 0 to 1
STD = (0.229, 0.224, 0.225)
NORM_EPSILON = 1e-6  # timm's
HEADS = ("linear", "knn", "svm")  # in the order of `scores`
REAL, FAKE = 0, 1  # labels, as the heads' classes
MAX_DEGREE = 10  # the released SVM's is 3; each power is a node of the graph
_ANY = -1

ENCODER_SHAPES: dict[str, tuple[int, ...]] = {
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, TOKENS, WIDTH),
    "patch_embed.proj.weight": (WIDTH, 3, PATCH_PX, PATCH_PX),
    "patch_embed.proj.bias": (WIDTH,),
    **{
        f"blocks.{block}.{name}": shape
        for block in range(DEPTH)
        for name, shape in {
            "norm1.weight": (WIDTH,),
            "norm1.bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "norm2.weight": (WIDTH,),
            "norm2.bias": (WIDTH,),
            "mlp.fc1.weight": (4 * WIDTH, WIDTH),
            "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            "mlp.fc2.bias": (WIDTH,),
        }.items()
    },
    "norm.weight": (WIDTH,),
    "norm.bias": (WIDTH,),
}

# Scalars have shape [1]. The bank may hold embeddings of any length; the 1-NN compares directions.
HEAD_SHAPES: dict[str, tuple[int, ...]] = {
    "linear.coef": (WIDTH,),
    "linear.intercept": (1,),
    "knn.bank": (_ANY, WIDTH),
    "knn.labels": (_ANY,),  # 0 real, 1 fake
    "svm.support_vectors": (_ANY, WIDTH),
    "svm.dual_coef": (_ANY,),
    "svm.intercept": (1,),
    "svm.gamma": (1,),
    "svm.coef0": (1,),
    "svm.degree": (1,),  # a whole number
}
OPTIONAL_PREFIX = "calibration."  # may travel with the heads; the served scores do not use it


class WeightsError(Exception):
    """A weights folder that cannot be served; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Weights:
    """Encoder in float32 under timm's names, heads in float64 (labels int64), checked for names, shapes and
    finiteness. `groups`: of each row of the bank, or empty; they change no score and are no part of the version.
    """

    encoder: dict[str, npt.NDArray[np.float32]]
    heads: dict[str, npt.NDArray[np.generic]]
    groups: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """See `version`."""
        return version(self)

    @property
    def bank(self) -> tuple[Array, Array]:
        """The 1-NN bank's unit vectors: reals [R, 192] and fakes [F, 192], float64."""
        bank, labels = self.heads["knn.bank"].astype(np.float64), self.heads["knn.labels"]
        unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
        return unit[labels == REAL], unit[labels == FAKE]

    @property
    def group_names(self) -> list[str]:
        """The groups' names, each once, in order; a served group is a place in this list."""
        return sorted(set(self.groups))

    def head(self, name: str) -> Array:
        """One array of the heads as float64."""
        return self.heads[name].astype(np.float64)

    def scalar(self, name: str) -> float:
        """One number of the heads."""
        return float(self.head(name)[0])


def load(folder: Path) -> Weights:
    """The checked weights of `folder`. Raises WeightsError, naming the file, for anything missing, damaged, misshapen
    or not finite.
    """
    encoder, heads = read(folder / ENCODER_FILE), read(folder / HEADS_FILE)
    loaded = from_arrays(encoder, heads, encoder_from=str(folder / ENCODER_FILE), heads_from=str(folder / HEADS_FILE))
    return replace(loaded, groups=_read_groups(folder / GROUPS_FILE, len(loaded.heads["knn.bank"])))


def load_encoder(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The encoder of `folder` alone. Raises WeightsError."""
    encoder = read(folder / ENCODER_FILE)
    _check(encoder, ENCODER_SHAPES, str(folder / ENCODER_FILE))
    return {name: np.ascontiguousarray(encoder[name], dtype=np.float32) for name in ENCODER_SHAPES}


def from_arrays(
    encoder: Arrays, heads: Arrays, *, encoder_from: str = ENCODER_FILE, heads_from: str = HEADS_FILE
) -> Weights:
    """Checked weights from arrays in memory; `*_from` stand in the messages. Raises WeightsError."""
    _check(encoder, ENCODER_SHAPES, encoder_from)
    _check(
        {name: array for name, array in heads.items() if not name.startswith(OPTIONAL_PREFIX)}, HEAD_SHAPES, heads_from
    )
    _check_heads(heads, heads_from)
    return Weights(
        {name: np.ascontiguousarray(encoder[name], dtype=np.float32) for name in ENCODER_SHAPES},
        {
            name: np.ascontiguousarray(heads[name], dtype=np.int64 if name == "knn.labels" else np.float64)
            for name in HEAD_SHAPES
        },
    )


def save(folder: Path, encoder: Arrays, heads: Arrays) -> Weights:
    """Write a weights folder (arrays in the dtypes given) after checking it; returns what `load` would. Raises
    WeightsError.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415 - the float64 scorer alone needs no safetensors

    weights = from_arrays(encoder, heads)
    folder.mkdir(parents=True, exist_ok=True)
    for file, arrays in ((ENCODER_FILE, encoder), (HEADS_FILE, heads)):
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / file)
    return weights


def group_name(source: str) -> str:
    """A source's or generator's name as it may stand in a verdict."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in source)
    return shown[:MAX_GROUP_CHARACTERS] or "?"


def save_groups(folder: Path, groups: Sequence[str]) -> None:
    """Write `groups.json`: a name for each row of the bank."""
    (folder / GROUPS_FILE).write_text(json.dumps(list(groups), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def version(weights: Weights) -> str:
    """12 hex digits: SHA-256 over names, shapes and values (encoder as float32, heads as float64), so that neither the
    file's layout nor its number format matters: the same numbers always have the same version.
    """
    digest = hashlib.sha256(b"assay weights 1\n")
    for part in (weights.encoder, weights.heads):
        for name in sorted(part):
            array = part[name].astype(part[name].dtype.newbyteorder("<"))
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()[:12]


def reference_nearest(weights: Weights, embeddings: npt.ArrayLike) -> Array:
    """Cosine distances [N, M] of embeddings [N, D] to each row of the 1-NN bank, in float64."""
    bank = weights.head("knn.bank")
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    distances: Array = np.clip(1 - _unit(np.asarray(embeddings, dtype=np.float64)) @ unit.T, 0, None)
    return distances


def reference_scores(weights: Weights, embeddings: npt.ArrayLike, heads: Sequence[str] = HEADS) -> Array:
    """Scores [N, K] of `heads` (linear, knn, svm; P(fake)) of embeddings [N, D] in float64, as the contract
    defines them.

    linear: logistic regression's `predict_proba[:, 1]`. knn: d_real / (d_real + d_fake), cosine distances to the
    nearest of each kind, 0.5 where both are 0. svm: sigmoid(-decision_function) of a polynomial one-class SVM fitted on
    reals.
    """
    x = np.asarray(embeddings, dtype=np.float64)
    return np.stack([_SCORERS[head](weights, x) for head in heads], axis=1)


def _linear(weights: Weights, x: Array) -> Array:
    return _sigmoid(x @ weights.head("linear.coef") + weights.scalar("linear.intercept"))


def _knn(weights: Weights, x: Array) -> Array:
    unit = _unit(x)
    to_real, to_fake = (np.clip(1 - (unit @ side.T).max(axis=1), 0, None) for side in weights.bank)
    total = to_real + to_fake
    nearest: Array = np.divide(to_real, total, out=np.full_like(total, 0.5), where=total > 0)
    return nearest


def _unit(x: Array) -> Array:
    unit: Array = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return unit


def _svm(weights: Weights, x: Array) -> Array:
    kernel = (
        weights.scalar("svm.gamma") * x @ weights.head("svm.support_vectors").T + weights.scalar("svm.coef0")
    ) ** weights.scalar("svm.degree")
    return _sigmoid(-(kernel @ weights.head("svm.dual_coef") + weights.scalar("svm.intercept")))


_SCORERS = {"linear": _linear, "knn": _knn, "svm": _svm}


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def read(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of a safetensors file. Raises WeightsError."""
    from safetensors import SafetensorError  # noqa: PLC0415 - see save
    from safetensors.numpy import load_file  # noqa: PLC0415

    if not path.is_file():
        raise WeightsError(f"{path}: the file is missing; a weights folder holds {ENCODER_FILE} and {HEADS_FILE}")
    try:
        arrays = dict(load_file(path))
        _refuse_doubles(path)
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        struct.error,
    ) as error:  # AttributeError: a type that NumPy lacks
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); copy or export it again") from error
    return arrays


def _read_groups(path: Path, rows: int) -> tuple[str, ...]:
    """Raises WeightsError for a file that is no list of `rows` names."""
    if not path.exists():
        return ()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: no JSON ({error}); write a list of names, one for each row of knn.bank") from error
    if not isinstance(names, list) or len(names) != rows:
        got = f"{len(names)} entries" if isinstance(names, list) else "no list"
        raise WeightsError(f"{path}: has {got}; a list of {rows} names is expected, one for each row of knn.bank")
    for row, name in enumerate(names):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_GROUP_CHARACTERS or not name.isprintable():
            raise WeightsError(f"{path}: entry {row} is no name of 1 to {MAX_GROUP_CHARACTERS} printable characters")
    return tuple(names)


def _refuse_doubles(path: Path) -> None:
    """Raises ValueError when the header (JSON after its length in 8 bytes) names a tensor twice: the library takes the
    last and says nothing.
    """
    with path.open("rb") as file:
        header = file.read(struct.unpack("<Q", file.read(8))[0])
    json.loads(header, object_pairs_hook=_without_doubles)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{_some(sorted({name for name in names if names.count(name) > 1}))} stands in it twice")
    return unique


def _check(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    if missing := [name for name in shapes if name not in arrays]:
        raise WeightsError(f"{source}: {_some(missing)} missing; the names are those of triton_models/weights.py")
    if unknown := [name for name in arrays if name not in shapes]:
        raise WeightsError(f"{source}: {_some(unknown)} not expected; the names are those of triton_models/weights.py")
    for name, shape in shapes.items():
        array = arrays[name]
        if array.ndim != len(shape) or any(
            want not in (_ANY, have) for want, have in zip(shape, array.shape, strict=True)
        ):
            raise WeightsError(
                f"{source}: {name} has shape {list(array.shape)}, expected {['M' if n == _ANY else n for n in shape]}"
            )
        if array.dtype.kind not in "fiu":
            raise WeightsError(f"{source}: {name} is {array.dtype}; float16, float32, float64 or integers are expected")
        with np.errstate(over="ignore"):
            bad = int((~np.isfinite(array.astype(np.float32))).sum())
        if bad:
            raise WeightsError(f"{source}: {name} holds {bad} values that are NaN, infinite or too large for float32")


def _check_heads(heads: Arrays, source: str) -> None:
    bank, labels, vectors = heads["knn.bank"], heads["knn.labels"], heads["svm.support_vectors"]
    degree, gamma = float(heads["svm.degree"][0]), float(heads["svm.gamma"][0])
    if len(bank) != len(labels):
        raise WeightsError(f"{source}: knn.bank has {len(bank)} rows, knn.labels {len(labels)}")
    if set(np.unique(labels).tolist()) != {REAL, FAKE}:
        raise WeightsError(f"{source}: knn.labels must hold both 0 (real) and 1 (fake) and nothing else")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(bank.astype(np.float32), axis=1)
    if not (lengths > 0).all():
        raise WeightsError(
            f"{source}: knn.bank holds rows of zeros, or so small that float32 has no length for them: they "
            "have no direction to compare"
        )
    if not len(vectors) or len(vectors) != len(heads["svm.dual_coef"]):
        rows = f"{len(vectors)} rows, svm.dual_coef {len(heads['svm.dual_coef'])}"
        raise WeightsError(f"{source}: svm.support_vectors has {rows}; as many are expected, and at least one")
    if degree not in range(1, MAX_DEGREE + 1):
        raise WeightsError(f"{source}: svm.degree is {degree:g}, a whole number from 1 to {MAX_DEGREE} is expected")
    if gamma <= 0:
        raise WeightsError(f"{source}: svm.gamma is {gamma:g}, a number above 0 is expected")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

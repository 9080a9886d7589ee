"""Imports the published CoDE weights (huggingface.co/aimagelab/CoDE) into arrays, in one explicit step, running nothing
of them.

    python -m train.main import-release /downloads/CoDE weights/code
    python -m train.main import-release hf://aimagelab/CoDE weights/code

The encoder comes as `model.safetensors` in transformers' names, the heads as scikit-learn pickles, which are read as
data by `sklearn_pickle.py`. Out comes a weights folder that everything else uses.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from train.heads import Heads
from train.hub import first_line, quiet_hub
from train.sklearn_pickle import UnsafePickleError, read_estimator
from triton_models import weights
from triton_models.weights import DEPTH, ENCODER_SHAPES, WeightsError

__all__ = ["UnsafePickleError", "import_release", "timm_names"]

HUB_PREFIX = "hf://"
# D3's four, under its own names and those that images elsewhere carry.
D3_GENERATORS = ["gen_0", "gen_1", "gen_2", "gen_3", "deepfloyd-if", "sd-1.4", "sd-2.1", "sdxl-1.0"]
PUBLISHED = {
    "LogisticRegression": "sklearn/linear_tot_classifier_epoch-32.sav",
    "KNeighborsClassifier": "sklearn/knn_tot_classifier_epoch-32.sav",
    "OneClassSVM": "sklearn/ocsvm_kernel_poly_gamma_auto_nu_0_1_crop.joblib",
}
_CONFIG = {
    "hidden_size": 192,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 224,
    "patch_size": 16,
}
_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def import_release(source: str | Path, destination: str | Path) -> Path:
    """The published files in `source` (a folder, or hf://owner/name) -> a weights folder at `destination`, which must
    not exist or be empty.

    Raises UnsafePickleError if a pickle holds anything but the estimator's data, WeightsError for everything else that
    is wrong; then `destination` is not made.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise WeightsError(f"{destination} exists already: name a new folder, or remove it")
    folder = _download(str(source)) if str(source).startswith(HUB_PREFIX) else Path(source)
    for name in ("model.safetensors", *PUBLISHED.values()):
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder / name} is not there: give the folder with the published files (model.safetensors, "
                "config.json, sklearn/)"
            )
    _check_config(folder / "config.json")
    heads = _heads({kind: folder / name for kind, name in PUBLISHED.items()})
    try:
        published = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{folder / 'model.safetensors'}: {error}; download it again") from error
    encoder = timm_names(published)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as scratch:
        made = Path(scratch) / "weights"
        version = weights.save(made, encoder, heads.arrays).version
        (made / "card.json").write_text(json.dumps(_card(version), indent=2) + "\n")
        if destination.exists():
            destination.rmdir()
        shutil.move(made, destination)
    return destination


def timm_names(published: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Transformers' ViTModel arrays (float16 or float32) -> float32 under timm's names; the pooler is left out.

    timm has one matrix for query, key and value, one above the other. Raises WeightsError naming a missing array.
    """

    def take(name: str) -> np.ndarray:
        for prefix in ("", "vit.", "model."):
            if prefix + name in published:
                return np.asarray(published[prefix + name], dtype=np.float32)
        raise WeightsError(f"model.safetensors: {name} is missing; it is no ViT-Tiny in transformers' names")

    arrays: dict[str, np.ndarray] = {}
    for ours in ENCODER_SHAPES:
        stem, _, kind = ours.rpartition(".")
        if ours in _TOP:
            arrays[ours] = take(_TOP[ours])
        elif stem in _TOP:
            arrays[ours] = take(f"{_TOP[stem]}.{kind}")
        else:
            _, block, part = stem.split(".", 2)
            layer = f"encoder.layer.{block}."
            if part == "attn.qkv":
                arrays[ours] = np.concatenate(
                    [take(f"{layer}attention.attention.{name}.{kind}") for name in ("query", "key", "value")]
                )
            else:
                arrays[ours] = take(f"{layer}{_BLOCK[part]}.{kind}")
    return arrays


def _heads(paths: dict[str, Path]) -> Heads:
    read: dict[str, dict[str, Any]] = {}
    for expected, path in paths.items():
        kind, state = read_estimator(path)
        if kind != expected:
            raise WeightsError(f"{path}: holds a {kind}, a {expected} is expected")
        read[expected] = state
    linear, knn, svm = (read[kind] for kind in PUBLISHED)
    try:
        if linear["classes_"].tolist() != [0, 1] or knn["classes_"].tolist() != [0, 1]:
            raise WeightsError("the heads' classes are not 0 (real) and 1 (fake)")
        if knn["n_neighbors"] != 1 or knn["metric"] != "cosine" or svm["kernel"] != "poly":
            raise WeightsError("the heads are not a 1-NN by cosine and a polynomial one-class SVM")
        return Heads.from_parameters(
            linear_coef=linear["coef_"][0],
            linear_intercept=linear["intercept_"],
            knn_bank=knn["_fit_X"],
            knn_labels=knn["_y"].ravel(),
            svm_support_vectors=svm["support_vectors_"],
            svm_dual_coef=svm["dual_coef_"][0],
            svm_intercept=svm["intercept_"],
            svm_gamma=svm["_gamma"],
            svm_coef0=svm["coef0"],
            svm_degree=svm["degree"],
        )
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise WeightsError(f"a head lacks what a fitted estimator has ({type(error).__name__}: {error})") from error


def _check_config(path: Path) -> None:
    if not path.is_file():
        return  # the arrays' shapes say the rest
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error
    for name, value in _CONFIG.items():
        if config.get(name, value) != value:
            raise WeightsError(f"{path}: {name} is {config[name]!r}, CoDE has {value}")


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for hf:// sources
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    repository = source.removeprefix(HUB_PREFIX)
    try:
        with quiet_hub():
            return Path(
                snapshot_download(repository, allow_patterns=["model.safetensors", "config.json", *PUBLISHED.values()])
            )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise WeightsError(f"{source}: {first_line(error)}; is the hub reachable? A local folder works too") from error


def _card(version: str) -> dict[str, Any]:
    return {
        "name": "CoDE as published (aimagelab/CoDE), imported",
        "version": version,
        "encoder": "ViT-Tiny/16 at 224, CLS token after the final norm, float32",
        "heads": {name: f"imported from {path}" for name, path in PUBLISHED.items()},
        "fitted_on": {"encoder": {"generators": D3_GENERATORS, "photographs": [], "unlisted": "D3's train split"}},
        "inference": "central 224 x 224 at native size; embeddings are not normalised",
    }

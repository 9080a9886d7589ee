"""What the served scores are compared with: three ways to compute them that share no code with the graphs.

float64 NumPy (always there, also in the serving image), and where they are installed PyTorch with timm's model for the
encoder and scikit-learn's own estimators, filled with the arrays, for the heads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.weights import (
    ATTENTION_HEADS,
    DEPTH,
    ENCODER_NAME,
    FAKE,
    IMAGE_PX,
    MEAN,
    NORM_EPSILON,
    PATCH_PX,
    REAL,
    STD,
    WIDTH,
    Array,
    Weights,
)

Images = npt.NDArray[np.uint8]


def images(count: int = 16, seed: int = 20) -> Images:
    """The fixed set: uint8 [count, 224, 224, 3], coloured noise from smooth to sharp, stripes and flat colours.

    No two channels are alike and every fourth is dark or bright as a whole, so that a swapped channel, a missing
    normalisation or a changed resolution shows.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(IMAGE_PX), np.fft.fftfreq(IMAGE_PX))) + 1 / IMAGE_PX
    made = np.empty((count, IMAGE_PX, IMAGE_PX, 3))
    for index in range(count):
        slope = 0.25 * (index % 8)  # 0: white noise, 2: smooth as a photograph
        waves = np.fft.fft2(rng.standard_normal((3, IMAGE_PX, IMAGE_PX))) * frequency**-slope
        field = np.fft.ifft2(waves).real
        field /= field.std(axis=(1, 2), keepdims=True)
        level, contrast = rng.uniform(60, 190, (3, 1, 1)), rng.uniform(15, 60, (3, 1, 1))
        if index % 4 == 3:
            level = level * 0 + rng.choice([10.0, 245.0], (3, 1, 1))
        made[index] = (level + contrast * field).transpose(1, 2, 0)
    made[-1] = [200.0, 60.0, 20.0]
    made[-2, :, ::2] = [0.0, 255.0, 90.0]
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def embeddings(weights: Weights, pixels: Images) -> Array:
    """Embeddings [N, 192] of images [N, 224, 224, 3] in float64: ViT-Tiny/16 as timm defines it, one operation after
    the other.
    """
    w = {name: array.astype(np.float64) for name, array in weights.encoder.items()}
    side = IMAGE_PX // PATCH_PX
    x = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    x = (
        x.reshape(-1, side, PATCH_PX, side, PATCH_PX, 3)
        .transpose(0, 1, 3, 5, 2, 4)
        .reshape(len(pixels), side * side, -1)
    )
    x = x @ w["patch_embed.proj.weight"].reshape(WIDTH, -1).T + w["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(w["cls_token"], (len(x), 1, WIDTH)), x], axis=1) + w["pos_embed"]
    for block in range(DEPTH):
        b = {
            name.removeprefix(f"blocks.{block}."): array
            for name, array in w.items()
            if name.startswith(f"blocks.{block}.")
        }
        normed = _norm(x, b["norm1.weight"], b["norm1.bias"])
        qkv = normed @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
        q, k, v = qkv.reshape(len(x), -1, 3, ATTENTION_HEADS, WIDTH // ATTENTION_HEADS).transpose(2, 0, 3, 1, 4)
        logits = q @ k.swapaxes(-1, -2) / np.sqrt(WIDTH // ATTENTION_HEADS)
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + mixed @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        hidden = _norm(x, b["norm2.weight"], b["norm2.bias"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        x = x + _gelu(hidden) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    return _norm(x[:, 0], w["norm.weight"], w["norm.bias"])


def rounding(weights: Weights, pixels: Images, expected: Array, seed: int = 0) -> Array:
    """How much float32 matters on each image, float64 [N]: the largest change of its embedding (`expected` as it is)
    when every number of the encoder moves up or down by float32's unit roundoff, half of its last digit.

    Largest where much cancels out, as in images of one colour; float32 has rounding of that size at every operation.
    """
    rng = np.random.default_rng(seed)
    moved = {
        name: array * (1 + rng.choice([-(2.0**-24), 2.0**-24], array.shape)) for name, array in weights.encoder.items()
    }
    result: Array = np.abs(embeddings(replace(weights, encoder=moved), pixels) - expected).max(axis=1)
    return result


def torch_embeddings(weights: Weights, pixels: Images) -> Array:
    """The same by timm and PyTorch in float32. Raises ImportError where they are not installed."""
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415

    encoder = timm.create_model(ENCODER_NAME, pretrained=False, num_classes=0).eval()
    encoder.load_state_dict({name: torch.from_numpy(array) for name, array in weights.encoder.items()})
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        given = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
        return np.asarray(encoder(given).double().numpy())


def sklearn_scores(weights: Weights, x: Array) -> Array:
    """Scores [N, 3] of embeddings [N, 192] by scikit-learn's estimators. Raises ImportError where it is not installed.

    The SVM's orientation is scikit-learn's: its decision is positive for inliers, and it was fitted on reals.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

    linear = LogisticRegression()
    linear.classes_ = np.array([REAL, FAKE])
    linear.coef_, linear.intercept_ = weights.head("linear.coef")[None], weights.head("linear.intercept")
    bank, labels = weights.head("knn.bank"), weights.heads["knn.labels"]
    real, fake = (
        NearestNeighbors(n_neighbors=1, metric="cosine").fit(bank[labels == side]).kneighbors(x)[0][:, 0]
        for side in (REAL, FAKE)
    )
    decision = one_class_svm(weights).decision_function(x)
    nearest = np.divide(real, real + fake, out=np.full_like(real, 0.5), where=real + fake > 0)
    return np.stack([linear.predict_proba(x)[:, 1], nearest, 1 / (1 + np.exp(decision))], axis=1)


def one_class_svm(weights: Weights) -> Any:
    """A scikit-learn OneClassSVM that holds these arrays instead of having been fitted."""
    from sklearn.svm import OneClassSVM  # noqa: PLC0415

    vectors, dual, intercept = (
        weights.head("svm.support_vectors"),
        weights.head("svm.dual_coef")[None],
        weights.head("svm.intercept"),
    )
    svm = OneClassSVM(
        kernel="poly",
        degree=int(weights.scalar("svm.degree")),
        coef0=weights.scalar("svm.coef0"),
        gamma=weights.scalar("svm.gamma"),
    )
    state = {
        "support_": np.arange(len(vectors), dtype=np.int32),
        "support_vectors_": vectors,
        "_n_support": np.array([len(vectors), 0], dtype=np.int32),
        "dual_coef_": dual,
        "_dual_coef_": dual,
        "intercept_": intercept,
        "_intercept_": intercept,
        "_probA": np.empty(0),
        "_probB": np.empty(0),
        "_gamma": weights.scalar("svm.gamma"),
        "_sparse": False,
        "fit_status_": 0,
        "shape_fit_": (len(vectors), WIDTH),
        "n_features_in_": WIDTH,
    }
    for name, value in state.items():
        setattr(svm, name, value)
    return svm


def _norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    normed: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPSILON) * weight + bias
    return normed


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + _erf(x / np.sqrt(2)))


def _erf(x: Array) -> Array:
    """The error function to 1e-12, by cubic Hermite interpolation of math.erf: NumPy has none, and the serving image no
    SciPy.
    """
    at = (np.clip(x, -_ERF_REACH, _ERF_REACH) + _ERF_REACH) / _ERF_STEP
    left = np.minimum(at.astype(np.int64), len(_ERF) - 2)
    f = at - left
    rise = _ERF[left + 1] - _ERF[left]
    start, end = _ERF_SLOPE[left] * _ERF_STEP, _ERF_SLOPE[left + 1] * _ERF_STEP
    value: Array = _ERF[left] + f * (start + f * (3 * rise - 2 * start - end + f * (start + end - 2 * rise)))
    return value


_ERF_REACH, _ERF_STEP = 6.0, 1 / 512
_ERF_GRID = np.arange(-_ERF_REACH, _ERF_REACH + _ERF_STEP, _ERF_STEP)
_ERF = np.array([math.erf(value) for value in _ERF_GRID])
_ERF_SLOPE = 2 / np.sqrt(np.pi) * np.exp(-(_ERF_GRID**2))

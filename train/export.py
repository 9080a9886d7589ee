"""Puts encoder and heads together into what is served: a weights folder, its card, and the ONNX graphs with their
version.

    python -m train.main export --weights runs/first/weights --out triton_models/weights/mine --half

The graphs are those that `triton_models.build` makes of the folder; here they are compared with PyTorch and NumPy
before anything is kept.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from safetensors.numpy import load_file

from train.heads import Heads
from train.model import code_backbone
from triton_models import graph, weights
from triton_models.weights import HEADS_FILE, WeightsError, save_groups

EMBEDDING_TOLERANCE = 2e-4  # of features with a spread of about 1
SCORE_TOLERANCE = 1e-4
CARD = "card.json"


def export(source: Path, out: Path, *, half: bool = False, card: dict[str, Any] | None = None) -> dict[str, Any]:
    """Weights folder `source` -> `out` (encoder.safetensors, heads.safetensors, card.json, onnx/*.onnx); returns the
    card.

    `half` stores the encoder as float16: half the size, another version. Raises WeightsError if the source is not
    whole, the graphs compute something else, or `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise WeightsError(f"{out} is not empty: name a new folder")
    whole = weights.load(source)
    encoder = {name: array.astype(np.float16 if half else np.float32) for name, array in whole.encoder.items()}
    heads = load_file(source / HEADS_FILE)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "weights"
        kept = weights.save(made, encoder, heads)
        if whole.groups:
            save_groups(made, whole.groups)
            kept = replace(kept, groups=whole.groups)
        (made / "onnx").mkdir()
        for name, model in (
            ("code_encoder", graph.encoder(kept)),
            ("code_heads", graph.heads(kept)),
            ("code", graph.fused(kept)),
        ):
            graph.write(model, made / "onnx" / f"{name}.onnx")
        differences = compare(made)
        previous = json.loads((source / CARD).read_text()) if (source / CARD).exists() else {}
        full = {
            **previous,
            **(card or {}),
            "model_version": kept.version,
            "encoder_dtype": "float16" if half else "float32",
            "onnx_difference": differences,
        }
        (made / CARD).write_text(json.dumps(full, indent=2) + "\n")
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    return full


def compare(folder: Path) -> dict[str, float]:
    """Largest differences of the graphs in `folder`/onnx from PyTorch (embedding) and NumPy (scores). Raises
    WeightsError above the tolerance.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    expected = code_backbone(folder).embed(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "code.onnx"), providers=["CPUExecutionProvider"])
    embedding, scores = session.run(["embedding", "scores"], {"images": pixels})
    differences = {
        "embedding": float(np.abs(embedding - expected).max()),
        "scores": float(np.abs(scores - Heads.load(folder).scores(expected)).max()),
    }
    # Both ways round in float32: what counts is the size of the features.
    if (
        differences["embedding"] > EMBEDDING_TOLERANCE * max(1.0, float(expected.std()))
        or differences["scores"] > SCORE_TOLERANCE
    ):
        raise WeightsError(f"the ONNX graphs differ from PyTorch by {differences}: do not serve them")
    return differences

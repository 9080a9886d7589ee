"""The ONNX graphs, written from arrays with `onnx.helper`: no torch, no tracing, so the demo path stays small and a
graph is the same bytes on every machine.

    images UINT8 [N, 224, 224, 3] -> code_encoder -> embedding FP32 [N, 192] -> code_heads -> scores FP32 [N, 3]
                                                                           nearest INT32 [N, 4]
                                                                           distances FP32 [N, 2]

`nearest`: rows of the 1-NN bank, the nearest real and the nearest generated one, then the groups of both (-1: none);
`distances`: their cosine distances.

`code` is both in one graph. Only operators of opset 18 are used, which ONNX Runtime and TensorRT's parser both know.
Two things differ from timm's forward pass, neither changes the result: the last block computes its class token only
(the other tokens are never read: 7 % of the work), and the patch convolution is a product of flattened patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from triton_models.weights import (
    ATTENTION_HEADS,
    DEPTH,
    FAKE,
    HEADS,
    IMAGE_PX,
    MEAN,
    NORM_EPSILON,
    PATCH_PX,
    REAL,
    STD,
    TOKENS,
    WIDTH,
    Weights,
    WeightsError,
)

Precision = Literal["fp32", "fp16", "bf16"]
OPSET, IR_VERSION = 18, 9  # within what ONNX Runtime >= 1.14 and TensorRT >= 10 read
EXTERNAL_BYTES = 16 * 1024 * 1024  # a larger tensor goes to its own file beside the graph
DATA_FILE = "model.data"
_CONSTANTS = {"embedding": (WIDTH, 0.0), "scores": (len(HEADS), 0.5), "nearest": (4, -1), "distances": (2, 0.0)}
_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@dataclass
class Builder:
    """Collects nodes and constants; `precision` is that of the encoder's matrix products."""

    precision: Precision
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: npt.ArrayLike, *, half: bool = False) -> str:
        """A float32 (`half`: in the body's precision) or int64 constant."""
        values = np.asarray(array)
        if values.dtype.kind != "i":
            values = values.astype(np.float32)
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        if half and self.precision != "fp32":
            if self.precision == "fp16" and np.abs(values).max() > np.finfo(np.float16).max:
                raise WeightsError(f"{name} holds values beyond float16; build with --precision bf16 or fp32")
            tensor = helper.make_tensor(name, _TYPES[self.precision], values.shape, values.ravel())
        self.constants[name] = tensor
        return name

    def half(self, value: str, name: str) -> str:
        return (
            value
            if self.precision == "fp32"
            else self.node("Cast", value, name=f"{name}/half", to=_TYPES[self.precision])
        )

    def full(self, value: str, name: str) -> str:
        return (
            value if self.precision == "fp32" else self.node("Cast", value, name=f"{name}/full", to=TensorProto.FLOAT)
        )

    def product(self, value: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], name: str) -> str:
        """Value @ weight.T + bias (a torch Linear) in the body's precision, result too."""
        product = self.node(
            "MatMul", value, self.constant(f"{name}.weight", weight.T, half=True), name=f"{name}/product"
        )
        return self.node("Add", product, self.constant(f"{name}.bias", bias, half=True), name=name)


def encoder(weights: Weights, precision: Precision = "fp32") -> onnx.ModelProto:
    """Images UINT8 [N, 224, 224, 3] RGB -> embedding FP32 [N, 192]. `precision` of the matrix products; LayerNorm,
    softmax, GELU and the residual sums stay in float32.
    """
    b = Builder(precision)
    encode(b, weights)
    return _model(b, "code_encoder", ["images"], ["embedding"])


def heads(weights: Weights) -> onnx.ModelProto:
    """Embedding FP32 [N, 192] -> scores FP32 [N, 3], nearest INT32 [N, 4], distances FP32 [N, 2]; always float32."""
    b = Builder("fp32")
    score(b, weights)
    neighbours(b, weights)
    return _model(b, "code_heads", ["embedding"], ["scores", "nearest", "distances"])


def fused(weights: Weights, precision: Precision = "fp32") -> onnx.ModelProto:
    """Both in one graph: images -> embedding, scores, nearest, distances."""
    b = Builder(precision)
    encode(b, weights)
    score(b, weights)
    neighbours(b, weights)
    return _model(b, "code", ["images"], ["embedding", "scores", "nearest", "distances"])


def constant(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> onnx.ModelProto:
    """A graph that answers every image alike (embedding 0, scores 0.5, no neighbours), to measure what surrounds the
    model.
    """
    b = Builder("fp32")
    batch = b.node("Shape", inputs[0], name="batch", start=0, end=1)
    for output, (width, value) in _CONSTANTS.items():
        if output in outputs:
            shape = b.node(
                "Concat", batch, b.constant(f"{output}/width", np.array([width])), name=f"{output}/shape", axis=0
            )
            row = b.constant(f"{output}/row", np.full((1, width), value))
            if output == "nearest":
                b.node("Cast", b.node("Expand", row, shape, name="rows"), name=output, to=TensorProto.INT32)
            else:
                b.node("Expand", row, shape, name=output)
    return _model(b, name, list(inputs), list(outputs))


def write(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write a graph, tensors beyond EXTERNAL_BYTES to DATA_FILE beside it; returns the files written."""
    large = any(tensor.ByteSize() > EXTERNAL_BYTES for tensor in model.graph.initializer)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving with external data empties the tensors of the model it is given
    onnx.save_model(
        copy, path, save_as_external_data=large, location=DATA_FILE if large else None, size_threshold=EXTERNAL_BYTES
    )
    if not large:
        return [path]
    (path.parent / DATA_FILE).chmod(path.stat().st_mode)  # onnx gives it to its owner alone, whoever else may serve it
    return [path, path.parent / DATA_FILE]


def run(path: Path, given: npt.NDArray[Any], outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The outputs, by name, of a written graph for its one input, under ONNX Runtime. Raises ImportError where that is
    not installed.
    """
    import onnxruntime  # noqa: PLC0415 - not where only the server has it

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the serving model has the same cores
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return dict(zip(outputs, session.run(list(outputs), {name: given}), strict=True))


def encode(b: Builder, weights: Weights) -> None:
    """Add CoDE's encoder: `images` -> `embedding`."""
    w = weights.encoder
    side = IMAGE_PX // PATCH_PX
    pixels = b.node("Cast", "images", name="pixels", to=TensorProto.FLOAT)
    grid = b.node(
        "Reshape", pixels, b.constant("grid_shape", np.array([-1, side, PATCH_PX, side, PATCH_PX, 3])), name="grid"
    )
    ordered = b.node("Transpose", grid, name="patches/order", perm=[0, 1, 3, 2, 4, 5])
    patches = b.node(
        "Reshape", ordered, b.constant("patch_shape", np.array([-1, TOKENS - 1, PATCH_PX**2 * 3])), name="patches"
    )
    # One value per element of a patch: broadcasting three channels over the innermost axis is slow everywhere.
    mean, std = (np.tile(np.array(values) * 255, PATCH_PX**2) for values in (MEAN, STD))
    centred = b.node("Sub", patches, b.constant("mean", mean), name="normalised/centred")
    normalised = b.node("Mul", centred, b.constant("inverse_std", 1 / std), name="normalised")
    kernel = (
        w["patch_embed.proj.weight"].transpose(0, 2, 3, 1).reshape(WIDTH, -1)
    )  # [192, 3, 16, 16] -> [192, row column channel]
    tokens = b.full(
        b.product(b.half(normalised, "normalised"), kernel, w["patch_embed.proj.bias"], "patch_embed"), "patch_embed"
    )
    x = b.node("Add", tokens, b.constant("patch_positions", w["pos_embed"][:, 1:]), name="patch_tokens")
    # The class token does not depend on the image: its row is a constant, repeated once per image.
    first = b.constant("class_row", w["cls_token"] + w["pos_embed"][:, :1])
    batch = b.node("Shape", "images", name="batch", start=0, end=1)
    repeat = b.node("Concat", batch, b.constant("row_shape", np.array([1, WIDTH])), name="class_shape", axis=0)
    x = b.node("Concat", b.node("Expand", first, repeat, name="class_tokens"), x, name="tokens", axis=1)
    for block in range(DEPTH):
        x = _block(b, w, x, f"blocks.{block}", last=block == DEPTH - 1)
    final = _norm(b, w, x, "norm")
    b.node("Reshape", final, b.constant("embedding_shape", np.array([-1, WIDTH])), name="embedding")


def _norm(b: Builder, w: dict[str, npt.NDArray[np.float32]], x: str, name: str) -> str:
    scale, bias = b.constant(f"{name}.weight", w[f"{name}.weight"]), b.constant(f"{name}.bias", w[f"{name}.bias"])
    return b.node("LayerNormalization", x, scale, bias, name=name, axis=-1, epsilon=NORM_EPSILON)


def _block(b: Builder, w: dict[str, npt.NDArray[np.float32]], x: str, name: str, *, last: bool) -> str:
    width = WIDTH // ATTENTION_HEADS
    normed = b.half(_norm(b, w, x, f"{name}.norm1"), f"{name}.norm1")
    weight, bias = (np.split(w[f"{name}.attn.qkv.{kind}"], 3) for kind in ("weight", "bias"))
    if "heads_shape" not in b.constants:
        b.constant("heads_shape", np.array([0, 0, ATTENTION_HEADS, width]))
        b.constant("joined_shape", np.array([0, 0, WIDTH]))
        b.constant("first_token", np.array([0]))
        b.constant("second_token", np.array([1]))
        b.constant("token_axis", np.array([1]))
    if last:
        x = b.node("Slice", x, "first_token", "second_token", "token_axis", name=f"{name}/class")
        asking = b.node("Slice", normed, "first_token", "second_token", "token_axis", name=f"{name}/asking")
    else:
        asking = normed
    parts = []
    # The scale 1 / sqrt(64) is a power of two: in the query's weights it costs nothing and loses nothing.
    for kind, source, factor, perm in (
        ("q", asking, width**-0.5, [0, 2, 1, 3]),
        ("k", normed, 1.0, [0, 2, 3, 1]),
        ("v", normed, 1.0, [0, 2, 1, 3]),
    ):
        index = "qkv".index(kind)
        flat = b.product(
            source, weight[index] * np.float32(factor), bias[index] * np.float32(factor), f"{name}.attn.{kind}"
        )
        split = b.node("Reshape", flat, "heads_shape", name=f"{name}.attn.{kind}/split")
        parts.append(b.node("Transpose", split, name=f"{name}.attn.{kind}/heads", perm=perm))
    logits = b.full(b.node("MatMul", parts[0], parts[1], name=f"{name}.attn/logits"), f"{name}.attn/logits")
    shares = b.half(b.node("Softmax", logits, name=f"{name}.attn/shares", axis=-1), f"{name}.attn/shares")
    mixed = b.node("MatMul", shares, parts[2], name=f"{name}.attn/mixed")
    back = b.node("Transpose", mixed, name=f"{name}.attn/back", perm=[0, 2, 1, 3])
    joined = b.node("Reshape", back, "joined_shape", name=f"{name}.attn/joined")
    projected = b.full(
        b.product(joined, w[f"{name}.attn.proj.weight"], w[f"{name}.attn.proj.bias"], f"{name}.attn.proj"),
        f"{name}.attn.proj",
    )
    x = b.node("Add", x, projected, name=f"{name}/attended")
    normed = b.half(_norm(b, w, x, f"{name}.norm2"), f"{name}.norm2")
    hidden = b.full(
        b.product(normed, w[f"{name}.mlp.fc1.weight"], w[f"{name}.mlp.fc1.bias"], f"{name}.mlp.fc1"), f"{name}.mlp.fc1"
    )
    hidden = b.half(_gelu(b, hidden, f"{name}.mlp.gelu"), f"{name}.mlp.gelu")
    hidden = b.full(
        b.product(hidden, w[f"{name}.mlp.fc2.weight"], w[f"{name}.mlp.fc2.bias"], f"{name}.mlp.fc2"), f"{name}.mlp.fc2"
    )
    return b.node("Add", x, hidden, name=name)


def _gelu(b: Builder, x: str, name: str) -> str:
    """x/2 (1 + erf(x / sqrt 2)), in the form that ONNX Runtime and TensorRT recognise and fuse."""
    if "gelu_root" not in b.constants:
        b.constant("gelu_root", np.array(2.0**0.5))
        b.constant("gelu_one", np.array(1.0))
        b.constant("gelu_half", np.array(0.5))
    inner = b.node("Erf", b.node("Div", x, "gelu_root", name=f"{name}/scaled"), name=f"{name}/erf")
    outer = b.node("Mul", x, b.node("Add", inner, "gelu_one", name=f"{name}/shifted"), name=f"{name}/gated")
    return b.node("Mul", outer, "gelu_half", name=name)


def score(b: Builder, weights: Weights, wanted: Sequence[str] = HEADS) -> None:
    """Add the heads: `embedding` -> `scores`, a column for each that is wanted."""
    make = {"linear": _linear, "knn": _nearest, "svm": _one_class}
    b.node("Concat", *(make[head](b, weights, "embedding") for head in wanted), name="scores", axis=1)


def _linear(b: Builder, weights: Weights, x: str) -> str:
    logit = b.node("MatMul", x, b.constant("linear.coef", weights.head("linear.coef")[:, None]), name="linear/product")
    logit = b.node("Add", logit, b.constant("linear.intercept", weights.head("linear.intercept")), name="linear/logit")
    return b.node("Sigmoid", logit, name="linear")


def _nearest(b: Builder, weights: Weights, x: str) -> str:
    """d_real / (d_real + d_fake). A cosine distance is |a - c|^2/2 + |b - c|^2/2 - (a - c)(b - c) for unit vectors a, b
    and any c: with c the bank's mean nothing large cancels, where 1 - ab loses most digits of embeddings that lie close
    together.
    """
    real, fake = weights.bank
    centre = np.concatenate([real, fake]).mean(axis=0)
    b.constant("knn.axis", np.array([1]))
    b.constant("knn.half", np.array(0.5))
    length = b.node("ReduceL2", x, "knn.axis", name="knn/length", keepdims=1)
    # Far below any real length and far above float32's denormals: a zero embedding or a double match gives 0.5, not
    # NaN.
    tiny = b.constant("knn.tiny", np.array(1e-30))
    unit = b.node("Div", x, b.node("Max", length, tiny, name="knn/safe_length"), name="knn/unit")
    moved = b.node("Sub", unit, b.constant("knn.centre", centre), name="knn/moved")
    own = b.node(
        "Mul",
        b.node("ReduceSumSquare", moved, "knn.axis", name="knn/own_square", keepdims=1),
        "knn.half",
        name="knn/own",
    )
    distances = []
    for side, vectors in (("real", real), ("fake", fake)):
        bank = vectors - centre
        product = b.node("MatMul", moved, b.constant(f"knn.{side}", bank.T), name=f"knn/{side}/product")
        closeness = b.node(
            "Sub", product, b.constant(f"knn.{side}_square", (bank**2).sum(axis=1) / 2), name=f"knn/{side}/closeness"
        )
        nearest = b.node("ReduceMax", closeness, "knn.axis", name=f"knn/{side}/nearest", keepdims=1)
        distance = b.node(
            "Relu", b.node("Sub", own, nearest, name=f"knn/{side}/difference"), name=f"knn/{side}/distance"
        )
        distances.append(b.node("Add", distance, tiny, name=f"knn/{side}"))
    return b.node("Div", distances[0], b.node("Add", *distances, name="knn/total"), name="knn")


def neighbours(b: Builder, weights: Weights) -> None:
    """Add, behind the 1-NN head: `nearest` INT32 [N, 4] (rows of the bank: nearest real, nearest generated; then the
    groups of both, -1 where the weights name none) and `distances` FP32 [N, 2], cosine. No score depends on them.
    """
    labels, names = weights.heads["knn.labels"], weights.group_names
    of_row = [names.index(name) for name in weights.groups] or [-1] * len(labels)
    groups = b.constant("knn.groups", np.array(of_row, np.int64))
    rows = []
    for label, side in ((REAL, "real"), (FAKE, "fake")):
        at = b.node("ArgMax", f"knn/{side}/closeness", name=f"knn/{side}/at", axis=1, keepdims=1)
        rows.append(
            b.node(
                "Gather", b.constant(f"knn.{side}_rows", np.flatnonzero(labels == label)), at, name=f"knn/{side}/row"
            )
        )
    found = [b.node("Gather", groups, row, name=f"{row}/group") for row in rows]
    joined = b.node("Concat", *rows, *found, name="knn/rows", axis=1)
    b.node("Cast", joined, name="nearest", to=TensorProto.INT32)
    b.node("Concat", "knn/real/distance", "knn/fake/distance", name="distances", axis=1)


def _one_class(b: Builder, weights: Weights, x: str) -> str:
    """sigmoid(-decision): the SVM is fitted on reals, its decision is positive for reals."""
    vectors = weights.head("svm.support_vectors").T * weights.scalar("svm.gamma")
    base = b.node("MatMul", x, b.constant("svm.vectors", vectors), name="svm/product")
    base = b.node("Add", base, b.constant("svm.coef0", weights.head("svm.coef0")), name="svm/base")
    kernel = base
    for power in range(2, int(weights.scalar("svm.degree")) + 1):
        kernel = b.node("Mul", kernel, base, name=f"svm/power{power}")
    decision = b.node(
        "MatMul", kernel, b.constant("svm.dual_coef", -weights.head("svm.dual_coef")[:, None]), name="svm/weighted"
    )
    decision = b.node(
        "Add", decision, b.constant("svm.intercept", -weights.head("svm.intercept")), name="svm/negative_decision"
    )
    return b.node("Sigmoid", decision, name="svm")


def _model(b: Builder, name: str, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    values: dict[str, tuple[int, list[str | int | None]]] = {
        "images": (TensorProto.UINT8, ["N", IMAGE_PX, IMAGE_PX, 3]),
        "embedding": (TensorProto.FLOAT, ["N", WIDTH]),
        "scores": (TensorProto.FLOAT, ["N", len(HEADS)]),
        "nearest": (TensorProto.INT32, ["N", 4]),
        "distances": (TensorProto.FLOAT, ["N", 2]),
    }
    graph = helper.make_graph(
        b.nodes,
        name,
        [helper.make_tensor_value_info(value, *values[value]) for value in inputs],
        [helper.make_tensor_value_info(value, *values[value]) for value in outputs],
        list(b.constants.values()),
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="assay"
    )
    onnx.checker.check_model(model)
    return model

"""The ONNX graph of a detector: what is around its backbone is written here, the backbone is taken as it is.

images UINT8 [N, H, W, 3] -> normalised as the backbone wants it -> embedding FP32 [N, D] -> scores FP32 [N, K]

Where the view is several crops, one below the other, they are images of their own in between; an image's scores are
the mean, median or maximum of theirs, its embedding the mean.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from triton_models.detector import Detector
from triton_models.graph import IR_VERSION, OPSET, Builder, Precision, encode, score
from triton_models.weights import WeightsError

_PREFIX = "backbone/"


def graph_of(detector: Detector, precision: Precision = "fp32") -> onnx.ModelProto:
    """Raises WeightsError for a backbone that does not fit its description."""
    b = Builder(precision if detector.graph is None else "fp32")
    constants: list[onnx.TensorProto] = []
    if detector.graph is None:
        encode(b, detector.whole)
    else:
        backbone = _converted(detector)
        given, made = _ends(detector, backbone)
        fed = _normalised(b, detector, given)
        _take_in(b, backbone, constants, fed, made)
        shape = b.constant("embedding_shape", np.array([-1, detector.width]))
        b.node("Reshape", _PREFIX + made, shape, name="embedding")
    score(b, detector.whole, detector.spec.heads)
    if detector.spec.view.crops:
        _over_crops(b, detector)
    height, width = detector.spec.view.size
    whole = helper.make_graph(
        b.nodes,
        detector.spec.name,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", height, width, 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", detector.width]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(detector.spec.heads)]),
        ],
        [*b.constants.values(), *constants],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(whole, opset_imports=opsets, ir_version=IR_VERSION, producer_name="assay")
    onnx.checker.check_model(model)
    return model


def _over_crops(b: Builder, detector: Detector) -> None:
    """Around the nodes that are there: crops as images of their own, and what is said of an image out of theirs."""
    spec, crops = detector.spec, detector.spec.view.count
    inner = {"images": "crops", "embedding": "crops/embedding", "scores": "crops/scores"}
    for node in b.nodes:
        node.name = inner.get(node.name, node.name)
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    inside = [*b.nodes]
    b.nodes.clear()
    side = spec.view.crop
    b.node("Reshape", "images", b.constant("crops/shape", np.array([-1, side, side, 3])), name="crops")
    b.nodes.extend(inside)
    first = b.constant("crops/axis", np.array([1]))
    for name, width, how in (
        ("embedding", detector.width, "mean"),
        ("scores", len(spec.heads), spec.aggregate),
    ):
        rows = b.node(
            "Reshape",
            f"crops/{name}",
            b.constant(f"crops/{name}/shape", np.array([-1, crops, width])),
            name=f"{name}/crops",
        )
        if how == "median":
            every = b.constant("crops/count", np.array([crops]))
            b.nodes.append(helper.make_node("TopK", [rows, every], [f"{name}/sorted", f"{name}/order"], axis=1))
            middle = np.array([(crops - 1) // 2, crops // 2])
            rows = b.node("Gather", f"{name}/sorted", b.constant("crops/middle", middle), name=f"{name}/middle", axis=1)
        b.node("ReduceMax" if how == "max" else "ReduceMean", rows, first, name=name, keepdims=0)


def is_quantised(model: onnx.ModelProto) -> bool:
    """Are activations quantised by the largest of a whole tensor? Then rows must not be computed together."""
    return any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node)


def _converted(detector: Detector) -> onnx.ModelProto:
    """The backbone under our set of operators."""
    try:
        backbone = onnx.load(str(detector.graph))
        foreign = [one.domain for one in backbone.opset_import if one.domain not in ("", "ai.onnx")]
        if foreign and any(node.domain in foreign for node in backbone.graph.node):
            raise WeightsError(f"{detector.graph}: operators of {foreign[0]}; those of ONNX alone are served")
        if nested := [node.op_type for node in backbone.graph.node if any(one.HasField("g") for one in node.attribute)]:
            raise WeightsError(f"{detector.graph}: {nested[0]} holds a graph of its own; export it without branches")
        if any(one.domain in ("", "ai.onnx") and one.version != OPSET for one in backbone.opset_import):
            backbone = version_converter.convert_version(backbone, OPSET)
    except WeightsError:
        raise
    except Exception as error:  # the parser's and the converter's, of many types
        raise WeightsError(f"{detector.graph}: no usable ONNX graph ({' '.join(str(error).split())[:160]})") from error
    return backbone


def _ends(detector: Detector, backbone: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, str]:
    """The input, and the name of the output that is the embedding."""
    constants = {tensor.name for tensor in backbone.graph.initializer}
    inputs = [value for value in backbone.graph.input if value.name not in constants]
    outputs = [value.name for value in backbone.graph.output]
    if len(inputs) != 1:
        raise WeightsError(f"{detector.graph}: {len(inputs)} inputs; one, the image, is expected")
    wanted = detector.spec.output or outputs[0]
    if wanted not in outputs:
        raise WeightsError(f"{detector.graph}: no output {wanted!r} (backbone.output); there are {', '.join(outputs)}")
    dims = [one.dim_value for one in inputs[0].type.tensor_type.shape.dim]
    height, width = detector.spec.view.size
    height //= detector.spec.view.count
    expected = (height, width, 3) if _takes_bytes(inputs[0]) else (3, height, width)
    if len(dims) != 4 or any(have not in (0, want) for have, want in zip(dims[1:], expected, strict=True)):
        raise WeightsError(f"{detector.graph}: its input is {dims}, the view makes [N, {str(list(expected))[1:]}")
    return inputs[0], wanted


def _takes_bytes(given: onnx.ValueInfoProto) -> bool:
    return bool(given.type.tensor_type.elem_type == TensorProto.UINT8)


def _normalised(b: Builder, detector: Detector, given: onnx.ValueInfoProto) -> str:
    """`images` as the backbone takes them: uint8 as they are, or planes of float32."""
    if _takes_bytes(given):
        return "images"
    planes = b.node("Transpose", "images", name="planes", perm=[0, 3, 1, 2])
    values = b.node("Cast", planes, name="values", to=TensorProto.FLOAT)
    # In the order of ToTensor and Normalize, so that even quantised graphs get to the bit what they were fitted on.
    scaled = b.node("Div", values, b.constant("255", np.array(255.0)), name="scaled")
    mean, std = (np.array(one)[:, None, None] for one in (detector.spec.mean, detector.spec.std))
    centred = b.node("Sub", scaled, b.constant("mean", mean), name="centred")
    return b.node("Div", centred, b.constant("std", std), name="normalised")


def _take_in(b: Builder, backbone: onnx.ModelProto, constants: list[onnx.TensorProto], fed: str, made: str) -> None:
    """The backbone's nodes under names of their own, as far as `made` needs them."""
    graph = backbone.graph
    given = next(value.name for value in graph.input if value.name not in {one.name for one in graph.initializer})

    def renamed(name: str) -> str:
        return fed if name == given else _PREFIX + name if name else ""

    needed, kept = {made}, []
    for node in reversed(graph.node):
        if needed & {*node.output}:
            needed |= {*node.input}
            kept.append(node)
    for number, node in enumerate(reversed(kept)):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{_PREFIX}{number}/{node.name}"  # names may be missing
        for names in (copy.input, copy.output):
            names[:] = [renamed(name) for name in names]
        b.nodes.append(copy)
    for tensor in graph.initializer:
        if tensor.name in needed:
            copied = onnx.TensorProto()
            copied.CopyFrom(tensor)
            copied.name = _PREFIX + tensor.name
            constants.append(copied)

"""The ONNX graphs against the released code's values, scikit-learn's rule for labels, and timm."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from tests.triton_models.heads import predicted, tie_distance
from triton_models import graph, weights
from triton_models.weights import WIDTH, Weights, WeightsError

pytestmark = pytest.mark.slow


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def test_encoder_gives_the_golden_embeddings(golden: Path, golden_weights: Weights) -> None:
    """From uint8 pixels the graph's embeddings equal the released code's within its tolerance of 2e-4."""
    images, expected = (np.load(golden / "encoder" / f"{name}.npz") for name in ("images", "expected"))
    (embedding,) = session(graph.encoder(golden_weights)).run(None, {"images": images["images"]})
    assert np.abs(embedding - expected["cls_features"]).max() < 2e-4


def test_heads_give_the_golden_scores(golden: Path, golden_weights: Weights) -> None:
    """Probability, distances and decision of the released heads come out of the graph as scores to 1e-6, labels
    exactly.
    """
    data, expected = (np.load(golden / "heads" / f"{name}.npz") for name in ("data", "expected"))
    (scores,) = session(graph.heads(golden_weights)).run(["scores"], {"embedding": data["test_X"]})
    distances = expected["knn_min_distance_to_real_and_fake"]
    np.testing.assert_allclose(scores[:, 0], expected["linear_predict_proba"][:, 1], atol=2e-6)
    np.testing.assert_allclose(scores[:, 1], distances[:, 0] / distances.sum(axis=1), atol=2e-6)
    np.testing.assert_allclose(scores[:, 2], 1 / (1 + np.exp(expected["svm_decision_function"])), atol=2e-6)
    labels = np.stack([expected["linear_predict"], expected["knn_predict"], expected["svm_predict"] == -1], axis=1)
    assert np.array_equal(scores >= 0.5, labels.astype(bool))


def test_labels_are_scikit_learns_on_10_000_embeddings(golden: Path, golden_weights: Weights) -> None:
    """score >= 0.5 is each published head's own predict on 10,000 random embeddings; only a 1-NN tie below 1e-5 may
    differ.
    """
    x = np.random.default_rng(5).standard_normal((10_000, WIDTH)).astype(np.float32)
    heads = session(graph.heads(golden_weights))
    scores = np.concatenate([heads.run(["scores"], {"embedding": part})[0] for part in np.split(x, 40)])
    differs = (scores >= 0.5) != predicted(golden, x)
    assert not differs[:, [0, 2]].any()
    assert (tie_distance(golden_weights, x)[differs[:, 1]] < 1e-5).all()


def test_fused_graph_is_both_parts(golden: Path, golden_weights: Weights) -> None:
    """`code` as one graph gives what the heads make of the encoder's embedding."""
    images = np.load(golden / "encoder" / "images.npz")["images"][:2]
    embedding, scores = session(graph.fused(golden_weights)).run(["embedding", "scores"], {"images": images})
    np.testing.assert_allclose(scores, weights.reference_scores(golden_weights, embedding), atol=2e-6)


def test_encoder_is_timms_model(small_weights: Weights) -> None:
    """The class token alone in the last block, patches as a product: still timm's forward pass, for any batch."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in small_weights.encoder.items()})
    images = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(images).float() / 255 - torch.tensor(weights.MEAN)) / torch.tensor(weights.STD)
    with torch.inference_mode():
        expected = model(pixels.permute(0, 3, 1, 2)).numpy()
    encoder = session(graph.encoder(small_weights))
    for size in (1, 2, 5):
        (embedding,) = encoder.run(None, {"images": images[:size]})
        assert embedding.shape == (size, WIDTH)
        np.testing.assert_allclose(embedding, expected[:size], atol=5e-5)


def test_half_precision_keeps_norms_and_softmax_in_float32(golden: Path, golden_weights: Weights) -> None:
    """The mixed graph multiplies in float16 only, and its scores stay within 0.01 of float32's."""
    model = onnx.shape_inference.infer_shapes(graph.fused(golden_weights, "fp16"))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        kind = {types.get(name) for name in node.input} & {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
        if node.op_type in ("LayerNormalization", "Softmax", "Erf", "Sigmoid"):
            assert kind == {onnx.TensorProto.FLOAT}, node.name
        if node.op_type == "MatMul" and node.name.startswith(("blocks", "patch")):
            assert kind == {onnx.TensorProto.FLOAT16}, node.name
    images = np.load(golden / "encoder" / "images.npz")["images"]
    half, full = (
        session(graph.fused(golden_weights, precision)).run(["scores"], {"images": images})[0]
        for precision in ("fp16", "fp32")
    )
    assert 0 < np.abs(half - full).max() <= 0.01


def test_numbers_beyond_float16_are_refused(small_weights: Weights) -> None:
    """A weight that float16 would make infinite is named, with what to build instead."""
    encoder = small_weights.encoder | {"blocks.3.mlp.fc1.bias": np.full(4 * WIDTH, 7e4, np.float32)}
    made = weights.Weights(encoder, small_weights.heads)
    with pytest.raises(
        WeightsError, match=r"blocks\.3\.mlp\.fc1\.bias holds values beyond float16; build with --precision bf16"
    ):
        graph.encoder(made, "fp16")
    graph.encoder(made, "bf16")


def test_bfloat16_graph_is_valid(small_weights: Weights) -> None:
    """The bfloat16 form passes ONNX's checker with full type inference (no CPU runtime here executes it)."""
    made = graph.encoder(small_weights, "bf16")
    onnx.checker.check_model(made, full_check=True)
    kinds = {initializer.data_type for initializer in made.graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in kinds and onnx.TensorProto.FLOAT16 not in kinds


def test_close_embeddings_keep_their_digits(small_weights: Weights) -> None:
    """Where all embeddings point almost the same way (distances of 1e-6) the 1-NN score still agrees with float64."""
    rng = np.random.default_rng(11)
    centre = rng.standard_normal(WIDTH) * 5
    bank = centre + rng.standard_normal((60, WIDTH)) * 0.01
    heads = small_weights.heads | {"knn.bank": bank.astype(np.float32), "knn.labels": np.arange(60) % 2}
    made = weights.from_arrays(small_weights.encoder, heads)
    x = (centre + rng.standard_normal((200, WIDTH)) * 0.01).astype(np.float32)
    (scores,) = session(graph.heads(made)).run(["scores"], {"embedding": x})
    expected = weights.reference_scores(made, x)[:, 1]
    assert expected.std() > 0.01
    np.testing.assert_allclose(scores[:, 1], expected, atol=1e-4)


def test_no_embedding_gives_nan(small_weights: Weights) -> None:
    """Zero, an exact double of a bank row, and the double of a real and a fake at once: scores stay in [0, 1]."""
    bank = small_weights.heads["knn.bank"].copy()
    bank[1] = bank[0]  # the same direction, once as real and once as fake
    made = weights.from_arrays(small_weights.encoder, small_weights.heads | {"knn.bank": bank})
    x = np.stack([np.zeros(WIDTH), bank[2], bank[0], bank[0] * 1e6]).astype(np.float32)
    (scores,) = session(graph.heads(made)).run(["scores"], {"embedding": x})
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[1, 1] < 1e-3


def test_large_bank_is_external_data(small_weights: Weights, tmp_path: Path) -> None:
    """A bank of 100,000 embeddings stands in a file beside the graph, and the graph finds it."""
    rng = np.random.default_rng(2)
    heads = small_weights.heads | {
        "knn.bank": rng.standard_normal((100_000, WIDTH)).astype(np.float32),
        "knn.labels": np.arange(100_000) % 2,
    }
    made = weights.from_arrays(small_weights.encoder, heads)
    files = graph.write(graph.heads(made), tmp_path / "model.onnx")
    assert [path.name for path in files] == ["model.onnx", graph.DATA_FILE]
    assert files[0].stat().st_size < 3_000_000
    assert files[1].stat().st_size > 70_000_000
    assert files[0].stat().st_mode == files[1].stat().st_mode  # another user may serve what one has built
    x = rng.standard_normal((2, WIDTH)).astype(np.float32)
    (scores,) = session(str(files[0])).run(["scores"], {"embedding": x})
    np.testing.assert_allclose(scores, weights.reference_scores(made, x), atol=1e-5)


@pytest.mark.parametrize("name", ["encoder", "heads", "fused"])
def test_a_graph_is_the_same_bytes_every_time(name: str, small_weights: Weights) -> None:
    """Two exports of the same weights are equal, so hashes in a manifest mean something."""
    export = getattr(graph, name)
    assert export(small_weights).SerializeToString(deterministic=True) == export(small_weights).SerializeToString(
        deterministic=True
    )

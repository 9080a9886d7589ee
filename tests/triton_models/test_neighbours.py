"""The nearest rows of the 1-NN bank as outputs of the model: against float64, with planted faults, and their groups."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from triton_models import build, configuration, graph, reference, verify, weights
from triton_models.neighbours import Neighbours
from triton_models.weights import Weights, WeightsError

DEMO = Path(__file__).parents[2] / "triton_models" / "weights" / "demo"


def session(model: Any) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def demo() -> Weights:
    return weights.load(DEMO)


@pytest.fixture(scope="module")
def asked(demo: Weights) -> np.ndarray:
    """Embeddings [N, 192] around those of the bank, and some far away."""
    rng = np.random.default_rng(2)
    bank = demo.head("knn.bank")
    near = bank[rng.permutation(len(bank))[:150]] + rng.normal(0, 0.3, (150, bank.shape[1]))
    return np.concatenate([near, rng.normal(0, 1, (50, bank.shape[1]))]).astype(np.float32)


def told(demo: Weights, asked: np.ndarray) -> dict[str, np.ndarray]:
    """What the heads' graph says of these embeddings."""
    names = ["nearest", "distances"]
    return dict(zip(names, session(graph.heads(demo)).run(names, {"embedding": asked}), strict=True))


def test_the_rows_are_the_nearest_of_each_side(demo: Weights, asked: np.ndarray) -> None:
    """By cosine distances in float64, counted here; with the groups that the rows have."""
    found = told(demo, asked)
    bank, labels = demo.head("knn.bank"), demo.heads["knn.labels"]
    cosine = (asked.astype(float) @ bank.T) / np.outer(
        np.linalg.norm(asked.astype(float), axis=1), np.linalg.norm(bank, axis=1)
    )
    for column, label in enumerate((weights.REAL, weights.FAKE)):
        distance = np.where(labels == label, 1 - cosine, np.inf)
        rows = found["nearest"][:, column]
        np.testing.assert_allclose(found["distances"][:, column], distance.min(axis=1), atol=1e-5)
        np.testing.assert_allclose(distance[np.arange(len(rows)), rows], distance.min(axis=1), atol=1e-6)
        groups = [demo.group_names[group] for group in found["nearest"][:, 2 + column]]
        assert groups == [demo.groups[row] for row in rows]
    assert len({*found["nearest"][:, 0].tolist()}) > 20, "rows that are all alike would prove nothing"


def faults(good: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Answers as models with such a fault would give them."""
    nearest, distances = good["nearest"], good["distances"]
    return {
        "rows off by one": {"nearest": nearest + np.array([1, 1, 0, 0]), "distances": distances},
        "sides swapped": {"nearest": nearest[:, [1, 0, 3, 2]], "distances": distances[:, ::-1]},
        "distances swapped": {"nearest": nearest, "distances": distances[:, ::-1]},
        "groups swapped": {"nearest": nearest[:, [0, 1, 3, 2]], "distances": distances},
        "groups off by one": {"nearest": nearest + np.array([0, 0, 1, 0]), "distances": distances},
        "distances doubled": {"nearest": nearest, "distances": distances * 2},
        "similarities for distances": {"nearest": nearest, "distances": 1 - distances},
        "no number": {"nearest": nearest, "distances": distances * np.nan},
        "rows beyond the bank": {"nearest": nearest + np.array([100_000, 0, 0, 0]), "distances": distances},
        "always the first of a side": {"nearest": np.repeat(nearest[:1], len(nearest), axis=0), "distances": distances},
    }


def test_each_planted_fault_is_told(demo: Weights, asked: np.ndarray) -> None:
    """What the graph gives passes; each fault does not."""
    good = told(demo, asked)
    compare = Neighbours(demo, asked.astype(np.float64))
    allowed = np.full(len(asked), 1e-4)
    assert compare.problem(good, allowed) == ""
    unseen = [name for name, bad in faults(good).items() if not compare.problem(bad, allowed)]
    assert not unseen


@pytest.mark.slow
def test_verify_refuses_a_repository_that_names_other_rows(
    demo: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph whose bank is another one than its weights say."""
    turned = dataclasses.replace(demo, groups=(*demo.groups[1:], demo.groups[0]))
    honest = graph.fused
    monkeypatch.setattr(graph, "fused", lambda loaded, precision="fp32": honest(turned, precision))
    build.build(DEMO, "cpu", tmp_path / "models")
    problems = [row.failure for row in verify.verify(tmp_path / "models", images=reference.images(4)) if row.failure]
    assert any("nearest names other groups" in problem for problem in problems), problems


@pytest.mark.integration
@pytest.mark.parametrize("code", ["fused", "ensemble"])
def test_the_server_tells_neighbours(
    code: str, demo: Weights, tmp_path: Path, serve: Callable[..., AbstractContextManager[Any]]
) -> None:
    """Both forms of `code`, compared with float64 by `verify`; the groups stand in the model's configuration."""
    build.build(DEMO, "cpu", tmp_path / "models", options=build.Options(code=code))
    with serve(tmp_path / "run", tmp_path / "models") as serving:
        rows = verify.verify(tmp_path / "models", images=reference.images(4), server=serving.server.address)
        assert not verify.verdict(rows, build.check(tmp_path / "models"))
        from worker.clients.triton import Triton
        from worker.settings import TritonSettings

        client = Triton(TritonSettings(url=serving.server.address, shared_memory="off"), 4)
        try:
            version = client.model_version()
            told = client.infer(reference.images(4)).nearest
        finally:
            client.close()
    assert version == demo.version
    assert client.groups == tuple(demo.group_names)
    expected = weights.reference_nearest(demo, reference.embeddings(demo, reference.images(4)))
    labels = demo.heads["knn.labels"]
    for image, one in enumerate(told):
        for side, label in ((one.real, weights.REAL), (one.fake, weights.FAKE)):
            distance = np.where(labels == label, expected[image], np.inf)
            assert side.distance == pytest.approx(distance.min(), abs=1e-4)
            assert side.label == demo.groups[int(distance.argmin())]


def test_groups_change_no_version_and_no_score(demo: Weights, tmp_path: Path) -> None:
    """They are names: a folder without them is the same model, and says no group."""
    shutil.copytree(DEMO, tmp_path / "bare", ignore=shutil.ignore_patterns(weights.GROUPS_FILE))
    bare = weights.load(tmp_path / "bare")
    assert bare.version == demo.version
    assert bare.groups == ()
    text = configuration.ensemble(bare.version, bare.group_names)
    assert "groups" not in text
    assert "groups" in configuration.ensemble(demo.version, demo.group_names)
    x = demo.head("knn.bank")[:5].astype(np.float32)
    scores, nearest = session(graph.heads(bare)).run(["scores", "nearest"], {"embedding": x})
    assert (nearest[:, 2:] == -1).all()
    np.testing.assert_array_equal(scores, session(graph.heads(demo)).run(["scores"], {"embedding": x})[0])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no", "no JSON"),
        ('{"a": 1}', "no list"),
        ('["one"]', "1 entries"),
        (json.dumps(["x"] * 996 + [7]), "entry 996 is no name"),
        (json.dumps(["x"] * 996 + [""]), "entry 996 is no name"),
        (json.dumps(["x"] * 996 + ["a\u001b[2J"]), "entry 996 is no name"),
        (json.dumps(["x"] * 996 + ["a" * 257]), "entry 996 is no name"),
    ],
)
def test_wrong_groups_are_told(text: str, problem: str, tmp_path: Path) -> None:
    """With the file, and what is expected."""
    for path in DEMO.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / weights.GROUPS_FILE).write_text(text)
    with pytest.raises(WeightsError, match=problem):
        weights.load(tmp_path)


def test_the_demo_s_groups_are_of_their_side(demo: Weights) -> None:
    """A source of photographs is no generator: no name stands on both sides."""
    labels = demo.heads["knn.labels"]
    sides = [{group for group, label in zip(demo.groups, labels, strict=True) if label == side} for side in (0, 1)]
    assert not sides[0] & sides[1]
    assert min(map(len, sides)) > 10

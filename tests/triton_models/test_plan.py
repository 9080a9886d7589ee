"""Plans: every exported graph is taken by a TensorRT parser and built; a plan with another key is refused.

TensorRT-RTX parses and builds without a GPU, through the same code that builds with TensorRT inside the serving image.
"""

import ctypes
import json
from ctypes.util import find_library
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from triton_models import build, graph, plan, plan_run, weights
from triton_models.plan import Compiler, Gpu, Key, PlanError
from triton_models.plan_run import run_plan
from triton_models.repository import MANIFEST, check, file_hash
from triton_models.weights import WIDTH, Weights

pytestmark = pytest.mark.slow

IMAGE = (224, 224, 3)
L4, L40S, H200 = Gpu("8.9", "NVIDIA L4", 58), Gpu("8.9", "NVIDIA L40S", 142), Gpu("9.0", "NVIDIA H200", 132)


@pytest.fixture(scope="session")
def rtx() -> ModuleType:
    """TensorRT-RTX, of the extra `tensorrt-check`."""
    return pytest.importorskip("tensorrt_rtx", reason="install the extra tensorrt-check")


class Library:
    """libcuda of a machine with these visible GPUs; `code`: what cuInit answers."""

    def __init__(self, *gpus: Gpu, code: int = 0) -> None:
        self.gpus, self.code = gpus, code

    def cuInit(self, _flags: Any) -> int:  # noqa: N802 - the driver's names
        return self.code

    def cuGetErrorString(self, _code: Any, text: Any) -> int:  # noqa: N802
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: Any, number: Any) -> int:  # noqa: N802
        device._obj.value = 40 + number.value  # a handle need not be the number
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> int:  # noqa: N802
        gpu = self.gpus[device.value - 40]
        major, minor = map(int, gpu.capability.split("."))
        value._obj.value = {75: major, 76: minor, 16: gpu.processors}[attribute.value]
        return 0

    def cuDeviceGetName(self, name: Any, _length: Any, device: Any) -> int:  # noqa: N802
        name.value = self.gpus[device.value - 40].name.encode()
        return 0


def test_the_gpus_that_may_be_used_are_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is asked, as it knows CUDA_VISIBLE_DEVICES: one kind is the answer; several are named, with what to
    set; none is told.
    """
    library = Library(H200, H200)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert plan.visible_gpu() == H200
    library.gpus = (L4, L40S, L4)
    with pytest.raises(
        PlanError,
        match=r"NVIDIA L4 \(58 .* 8\.9 \(GPU 0 2\), NVIDIA L40S \(142 .* 8\.9 \(GPU 1\); set CUDA_VISIBLE_DEVICES",
    ):
        plan.visible_gpu()
    library.code = 100
    with pytest.raises(PlanError, match=r"no GPU can be used \(cuInit: no CUDA-capable device is detected \(100\)\)"):
        plan.visible_gpu()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["encoder", "fused"])
def test_image_graphs_become_plans(
    rtx: ModuleType, small_weights: Weights, tmp_path: Path, name: str, precision: graph.Precision
) -> None:
    """Parsed and built with a dynamic batch of 1 to 256; half precision makes a smaller plan of the same weights."""
    graph.write(getattr(graph, name)(small_weights, precision), tmp_path / "model.onnx")
    made = plan.compile_plan(rtx, tmp_path / "model.onnx", IMAGE, target="SM89")
    low, high = (20e6, 40e6) if precision == "fp32" else (10e6, 22e6)
    assert low < len(made) < high


def test_heads_become_a_plan(rtx: ModuleType, small_weights: Weights, tmp_path: Path) -> None:
    """So do the heads, also with a bank that stands in its own file."""
    rng = np.random.default_rng(0)
    heads = small_weights.heads | {
        "knn.bank": rng.standard_normal((48_000, WIDTH)),
        "knn.labels": np.arange(48_000) % 2,
    }
    files = graph.write(graph.heads(weights.from_arrays(small_weights.encoder, heads)), tmp_path / "model.onnx")
    assert len(files) == 2
    made = plan.compile_plan(rtx, tmp_path / "model.onnx", (WIDTH,), target="SM89")
    assert len(made) > 48_000 * WIDTH * 4


def test_a_foreign_graph_is_refused_with_the_parsers_words(
    rtx: ModuleType, small_weights: Weights, tmp_path: Path
) -> None:
    """An operator nobody knows is named in the error."""
    model = graph.heads(small_weights)
    model.graph.node[0].op_type = "Divination"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(PlanError, match="Divination"):
        plan.compile_plan(rtx, tmp_path / "model.onnx", (WIDTH,), target="SM89")


def test_a_repository_of_plans_is_keyed(
    rtx: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensorrt flavour holds one plan per model, named by its key and found by Triton for that GPU alone; another
    machine is refused.
    """
    compiler = Compiler(rtx, L4, "SM89")
    options = build.Options(precision="fp16", timing_cache=tmp_path / "timings")
    manifest = build.build(folder, "tensorrt", tmp_path / "models", options, compiler)
    assert manifest["plans"] == {
        "tensorrt": rtx.__version__,
        "capability": "8.9",
        "name": "NVIDIA L4",
        "processors": 58,
    }
    assert len(list((tmp_path / "timings").iterdir())) == 1
    for name in ("code", "code_encoder", "code_heads"):
        folder = tmp_path / "models" / name / str(manifest["version_number"])
        key = compiler.key(file_hash(folder / "model.onnx"))
        assert (folder / key.file_name).is_file()
        configured = (tmp_path / "models" / name / "config.pbtxt").read_text()
        assert f'cc_model_filenames [ {{ key: "8.9" value: "{key.file_name}" }} ]' in configured
        assert 'backend: "tensorrt"' in configured
        assert not list(folder.glob("*.py"))
    monkeypatch.setattr(plan, "here", lambda: compiler)
    assert check(tmp_path / "models") == manifest
    monkeypatch.setattr(plan, "here", lambda: Compiler(rtx, L40S))
    with pytest.raises(
        PlanError,
        match=(
            r"NVIDIA L4 \(.* compute capability 8\.9, here are .* NVIDIA L40S \(.* 8\.9; build it where it is "
            r"served: python -m triton_models\.build"
        ),
    ):
        check(tmp_path / "models")


def test_a_key_refuses_another_tensorrt_and_another_gpu() -> None:
    """Only the exact version and kind of GPU pass (a slice is another kind), and every part of the key is in the file's
    name.
    """
    key = Key("10.13.2.6", H200, "ab" * 32)
    key.check("10.13.2.6", H200)
    for other in (
        ("10.13.3.9", H200),
        ("11.0.0.1", H200),
        ("10.13.2.6", L4),
        ("10.13.2.6", Gpu("9.0", "NVIDIA H200 MIG 1g.18gb", 16)),
    ):
        with pytest.raises(PlanError, match=r"python -m triton_models\.build"):
            key.check(*other)
    keys = [
        Key("1", L4, "a" * 64),
        Key("2", L4, "a" * 64),
        Key("1", L40S, "a" * 64),
        Key("1", Gpu("9.0", "NVIDIA L4", 58), "a" * 64),
    ]
    keys += [Key("1", Gpu("8.9", "NVIDIA L4", 29), "a" * 64), Key("1", L4, "b" * 64)]
    assert len({key.file_name for key in keys}) == len(keys)
    assert keys[0].file_name == "trt1-cc8.9-nvidia-l4-sm58-aaaaaaaaaaaa.plan"


def test_a_plan_of_another_graph_is_refused(
    rtx: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph exchanged without building its plan anew, all hashes of the manifest right: refused, with the command to
    type.
    """
    compiler = Compiler(rtx, L4, "SM89")
    monkeypatch.setattr(plan, "here", lambda: compiler)
    manifest = build.build(folder, "tensorrt", tmp_path / "models", compiler=compiler)
    name = f"code/{manifest['version_number']}/model.onnx"
    (tmp_path / "models" / name).write_bytes((tmp_path / "models" / name.replace("code/", "code_heads/")).read_bytes())
    manifest["files"][name] = file_hash(tmp_path / "models" / name)
    (tmp_path / "models" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(
        PlanError, match=r"code/.*no plan of this graph stands beside it; .*python -m triton_models\.build"
    ):
        check(tmp_path / "models")


def test_timings_of_another_tensorrt_are_not_used(
    rtx: ModuleType, folder: Path, small_weights: Weights, tmp_path: Path
) -> None:
    """A timing cache that is damaged or of another version is replaced by one that fits, not a reason to fail."""
    graph.write(graph.heads(small_weights), tmp_path / "model.onnx")
    cache = tmp_path / "timings" / "cache"
    plan.compile_plan(rtx, tmp_path / "model.onnx", (WIDTH,), cache=cache, target="SM89")
    good = cache.read_bytes()
    for content in (b"", b"of another version", good[: len(good) // 2]):
        cache.write_bytes(content)
        assert plan.compile_plan(rtx, tmp_path / "model.onnx", (WIDTH,), cache=cache, target="SM89")
        assert len(cache.read_bytes()) >= len(good)


def test_a_plan_needs_a_gpu_to_run(tmp_path: Path) -> None:
    """Without the driver's library the error says what is missing; with it this is the work of the GPU tests."""
    if find_library("cuda"):
        pytest.skip("a CUDA driver is here; see test_gpu.py")
    with pytest.raises(PlanError, match="no GPU can be used"):
        run_plan(None, tmp_path / "some.plan", np.zeros((1, WIDTH), np.float32))


def test_the_calls_that_run_a_plan_exist(rtx: ModuleType) -> None:
    """TensorRT-RTX, whose interface is TensorRT's, knows every call by which a plan is run (there is no GPU to make
    them on).
    """
    used = {
        rtx.Runtime: ("deserialize_cuda_engine",),
        rtx.ICudaEngine: ("create_execution_context", "num_io_tensors", "get_tensor_name", "get_tensor_mode"),
        rtx.IExecutionContext: ("set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3"),
        rtx.TensorIOMode: ("INPUT",),
    }
    source = Path(plan_run.__file__ or "").read_text()
    for owner, names in used.items():
        for name in names:
            assert hasattr(owner, name) and f".{name}" in source

"""From an ONNX graph to a TensorRT plan, and what a plan is bound to.

A plan runs on one TensorRT version and one kind of GPU only, so it is keyed by both and by its graph, and `python -m
triton_models.build --check` refuses one with another key. Written for TensorRT 10.12 and 11: no precision flag is set
(11 has none), types stand in the graph and the network is strongly typed. The same code builds with TensorRT-RTX, whose
parser and builder run without a GPU: that is how it is tested where there is none.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OLDEST = (10, 12)
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS = 75, 76, 16  # CUdevice_attribute of cuda.h
PROFILE = (1, 32, 256)  # images a request: least, what tactics are chosen for, most
REBUILD = "build it where it is served: python -m triton_models.build --weights DIR --flavour tensorrt --out REPOSITORY"


class PlanError(Exception):
    """A plan that cannot be built or must not be used; the message says why and what to do."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU. The compute capability (`9.0` for an H100 or H200) is not enough: an L4 and an L40S, a whole GPU
    and a slice of it share one.
    """

    capability: str
    name: str  # as the driver says it: `NVIDIA L4`, `NVIDIA A100-SXM4-40GB MIG 1g.5gb`
    processors: int

    def __str__(self) -> str:
        return f"{self.name} ({self.processors} multiprocessors) of compute capability {self.capability}"


@dataclass(frozen=True)
class Key:
    """What a plan is bound to."""

    tensorrt: str
    gpu: Gpu
    graph: str  # SHA-256 of the ONNX file

    @property
    def machine(self) -> str:
        """TensorRT and the kind of GPU, as part of a file's name."""
        name = re.sub("[^a-z0-9]+", "-", self.gpu.name.lower()).strip("-")
        return f"trt{self.tensorrt}-cc{self.gpu.capability}-{name}-sm{self.gpu.processors}"

    @property
    def file_name(self) -> str:
        """A plan's file name: another key is another file."""
        return f"{self.machine}-{self.graph[:12]}.plan"

    def check(self, tensorrt: str, gpu: Gpu) -> None:
        """Raises PlanError unless the plan is for this TensorRT and this kind of GPU."""
        if (self.tensorrt, self.gpu) != (tensorrt, gpu):
            raise PlanError(
                f"the plan is for TensorRT {self.tensorrt} on {self.gpu}, here are TensorRT {tensorrt} and "
                f"{gpu}; {REBUILD}"
            )


@dataclass(frozen=True)
class Compiler:
    """A TensorRT module and what it builds for. `target`: member of `ComputeCapability` to build for without a GPU
    (TensorRT-RTX only).
    """

    trt: Any
    gpu: Gpu
    target: str | None = None

    def key(self, graph_hash: str) -> Key:
        """The key of a plan built by this compiler."""
        return Key(self.trt.__version__, self.gpu, graph_hash)

    def compile(self, graph: Path, dims: Sequence[int], cache: Path | None = None) -> bytes:
        """See `compile_plan`."""
        return compile_plan(self.trt, graph, dims, cache=cache, target=self.target)


def here() -> Compiler:
    """The compiler of this machine. Raises PlanError without TensorRT or a GPU."""
    return Compiler(load_tensorrt(), visible_gpu())


def load_tensorrt() -> Any:
    """The `tensorrt` module of the serving image. Raises PlanError when it is absent or older than 10.12."""
    try:
        import tensorrt  # noqa: PLC0415 - only in the serving image
    except ImportError as error:
        raise PlanError(
            f"the tensorrt module is not here ({error}); run this inside the serving image "
            "(deploy/docker/triton.Dockerfile)"
        ) from error
    if tuple(int(part) for part in tensorrt.__version__.split(".")[:2]) < OLDEST:
        raise PlanError(f"TensorRT {tensorrt.__version__} is too old: {'.'.join(map(str, OLDEST))} or newer is needed")
    return tensorrt


class Driver:
    """The CUDA driver, called directly (ctypes on libcuda.so.1, which comes with it): the serving image has neither
    PyTorch nor CuPy.

    It knows the GPUs that a process may use, CUDA_VISIBLE_DEVICES included, which nvidia-smi ignores. Raises PlanError
    without a driver or a usable GPU, and for whatever a call answers but success.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
            self.call("cuInit", ctypes.c_uint(0))
        except (OSError, PlanError) as error:
            raise PlanError(
                f"no GPU can be used ({error}); a plan is built and run on the GPU that serves it"
            ) from error

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver."""
        if code := getattr(self._library, name)(*arguments):
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            raise PlanError(f"{name}: {(text.value or b'no text').decode()} ({code})")


def visible_gpu() -> Gpu:
    """The kind of the GPUs that this process may use. Raises PlanError without a GPU, or with GPUs of several kinds."""
    driver, count = Driver(), ctypes.c_int()
    driver.call("cuDeviceGetCount", ctypes.byref(count))
    kinds: dict[Gpu, list[int]] = {}
    for number in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        driver.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        driver.call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        found = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS):
            value = ctypes.c_int()
            driver.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
            found.append(value.value)
        kinds.setdefault(Gpu(f"{found[0]}.{found[1]}", name.value.decode(), found[2]), []).append(number)
    if len(kinds) != 1:
        seen = ", ".join(f"{kind} (GPU {' '.join(map(str, devices))})" for kind, devices in kinds.items()) or "none"
        raise PlanError(
            f"GPUs of one kind are needed, visible are: {seen}; set CUDA_VISIBLE_DEVICES to those of one kind, "
            "for this command and for the server alike"
        )
    return next(iter(kinds))


def compile_plan(
    trt: Any,
    graph: Path,
    dims: Sequence[int],
    *,
    profile: tuple[int, int, int] = PROFILE,
    cache: Path | None = None,
    target: str | None = None,
) -> bytes:
    """The serialised plan of `graph`, whose single input has the shape [N, *dims].

    `trt`: the module `tensorrt` or `tensorrt_rtx`. `profile`: N at least, at its best, at most. `cache`: timing cache
    file, read and written. `target`: see `Compiler`. Raises PlanError with what the parser or the builder says.
    """
    said = recorder(trt)
    builder = trt.Builder(said)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, said)
    # By path, so that tensors stored beside the graph are found.
    if not parser.parse_from_file(str(graph)):
        problems = "; ".join(str(parser.get_error(index)).strip() for index in range(parser.num_errors))
        raise PlanError(f"{graph}: TensorRT {trt.__version__} does not take the graph ({problems or said.last})")
    if network.num_inputs != 1:
        raise PlanError(f"{graph}: one input is expected, the graph has {network.num_inputs}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32: scores are compared to 1e-4
    shapes = builder.create_optimization_profile()
    shapes.set_shape(network.get_input(0).name, *((size, *dims) for size in profile))
    config.add_optimization_profile(shapes)
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    if cache is not None:
        timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanError(f"{graph}: TensorRT {trt.__version__} could not build a plan ({said.last})")
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def recorder(trt: Any) -> Any:
    """A logger for `trt` that keeps the last error, as `last`, for the message of an exception."""

    class Recorder(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = " ".join(message.split())

    return Recorder()

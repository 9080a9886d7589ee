"""What the choices of the CPU flavour rest on: ratios between variants, measured in turns within one run.

    python -m triton_models.measure servers --weights DIR      one graph or an ensemble, instances x threads, on real servers
    python -m triton_models.measure graphs  --weights DIR      ONNX Runtime's options, and OpenVINO where it is installed

Rounds alternate between the variants, so that a busy machine slows all of them alike; the processor time per image does not
depend on what else runs. docs/decisions.md holds the results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from triton_models import build, graph, reference, weights
from triton_models.build import Options

LAYOUTS = {
    "one graph, 1 x all cores": Options(code="fused", instances=1, threads=build.cores()),
    "one graph, 1 thread per core": Options(code="fused", instances=build.cores(), threads=1),
    "ensemble, 1 x all cores": Options(code="ensemble", instances=1, threads=build.cores()),
}
# images a request, requests at once
LOADS = {"1 x 1": (1, 1), "1 x 8": (1, 8), "32 x 1": (32, 1), "32 x 2": (32, 2)}
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Result:
    """Rounds of one variant under one load."""

    images_per_s: list[float] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)


def servers(folder: Path, rounds: int, seconds: float) -> dict[str, dict[str, Result]]:
    """Every layout on a server of its own, every load in turns: results by load and layout."""
    from tritonclient import grpc  # noqa: PLC0415 - graphs does without

    from worker.local.triton_server import TritonServer  # noqa: PLC0415

    results = {load: {layout: Result() for layout in LAYOUTS} for load in LOADS}
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        running = {}
        for index, (layout, options) in enumerate(LAYOUTS.items()):
            directory = Path(work) / str(index)
            build.build(folder, "cpu", directory / "models", options)
            server = TritonServer(directory, dict(zip(TritonServer.port_names, _free_ports(3), strict=True)), directory / "models")
            process = server.start()
            stack.callback(server.stop, grace_s=15)
            _wait(server)
            running[layout] = process.pid, stack.enter_context(closing(grpc.InferenceServerClient(server.address)))
        for round_number in range(rounds + 1):
            for load, (images, callers) in LOADS.items():
                for layout, (pid, client) in running.items():
                    rate, processor_ms, latency_ms = _drive(client, pid, images, callers, seconds)
                    if round_number:  # the first warms up
                        result = results[load][layout]
                        result.images_per_s.append(rate)
                        result.processor_ms.append(processor_ms)
                        result.latency_ms.append(latency_ms)
    return results


def graphs(folder: Path, rounds: int, batch: int = 16) -> dict[str, tuple[float, float]]:
    """Processor milliseconds per image on one thread (least of the rounds) and largest score difference, by variant."""
    model = graph.fused(weights.load(folder)).SerializeToString()
    pixels = reference.images(batch)
    variants = _onnxruntime(model) | _openvino(model)
    first = next(iter(variants.values()))(pixels)
    best = dict.fromkeys(variants, float("inf"))
    apart = {name: float(np.abs(run(pixels) - first).max()) for name, run in variants.items()}
    for _ in range(rounds):
        for name, run in variants.items():
            before = time.process_time()
            run(pixels)
            best[name] = min(best[name], (time.process_time() - before) / batch * 1000)
    return {name: (best[name], apart[name]) for name in variants}


def _onnxruntime(model: bytes) -> dict[str, Callable[[reference.Images], Any]]:
    import onnxruntime  # noqa: PLC0415

    variants: dict[str, Callable[[reference.Images], Any]] = {}
    for name in ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        variants[f"ONNX Runtime {name}"] = partial(_run_onnxruntime, session)
    return variants


def _openvino(model: bytes) -> dict[str, Callable[[reference.Images], Any]]:
    try:
        import openvino  # type: ignore[import-not-found]  # noqa: PLC0415 - not a dependency: measured, not used
    except ImportError:
        print("openvino is not installed here: its rows are left out (pip install openvino)", file=sys.stderr)
        return {}
    core = openvino.Core()
    variants: dict[str, Callable[[reference.Images], Any]] = {}
    for precision in ("f32", "bf16"):
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
        request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
        variants[f"OpenVINO {precision}"] = partial(_run_openvino, request)
    return variants


def _run_onnxruntime(session: Any, pixels: reference.Images) -> Any:
    return session.run(["scores"], {"images": pixels})[0]


def _run_openvino(request: Any, pixels: reference.Images) -> Any:
    return request.infer({"images": pixels})["scores"].copy()


def _drive(client: Any, pid: int, images: int, callers: int, seconds: float) -> tuple[float, float, float]:
    """Images/s, processor ms per image, median latency in ms of `callers` threads that ask without a pause."""
    from tritonclient import grpc  # noqa: PLC0415

    tensor = grpc.InferInput("images", [images, 224, 224, 3], "UINT8")
    tensor.set_data_from_numpy(np.resize(reference.images(4), (images, 224, 224, 3)))
    latencies: list[float] = []
    stop = time.perf_counter() + seconds

    def ask() -> None:
        while time.perf_counter() < stop:
            before = time.perf_counter()
            client.infer("code", [tensor])
            latencies.append(time.perf_counter() - before)

    threads = [threading.Thread(target=ask) for _ in range(callers)]
    start, used = time.perf_counter(), _processor_s(pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = len(latencies) * images
    return done / (time.perf_counter() - start), (_processor_s(pid) - used) / done * 1000, statistics.median(latencies) * 1000


def _processor_s(pid: int) -> float:
    """Processor time of a server and of the model processes it started."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(entry.name) == pid or int(fields[1]) == pid:
                total += int(fields[11]) + int(fields[12])
    return total * _TICK_S


def _wait(server: Any) -> None:
    from worker.local.server import NotServing  # noqa: PLC0415

    deadline = time.monotonic() + server.boot_s
    while True:
        try:
            server.check()
        except NotServing:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _free_ports(count: int) -> list[int]:
    import socket  # noqa: PLC0415

    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m triton_models.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("servers", "graphs"))
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="servers: length of a round")
    options = parser.parse_args()
    if options.what == "graphs":
        found = graphs(options.weights, options.rounds)
        base = next(iter(found.values()))[0]
        for name, (processor_ms, apart) in found.items():
            print(f"{name:36} {processor_ms:6.1f} ms of one core per image, {base / processor_ms:5.2f} times as fast, score difference {apart:.0e}")
        return 0
    for load, layouts in servers(options.weights, options.rounds, options.seconds).items():
        print(f"{load} (images a request x requests at once)")
        first = next(iter(layouts.values()))
        for name, result in layouts.items():
            ratio = statistics.median(mine / its for mine, its in zip(result.images_per_s, first.images_per_s, strict=True))
            print(
                f"  {name:30} {statistics.median(result.images_per_s):6.1f} images/s ({ratio:4.2f})  "
                f"{min(result.processor_ms):6.1f} ms of a core per image  {statistics.median(result.latency_ms):7.0f} ms a request"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

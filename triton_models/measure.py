"""What the choices of the CPU flavour rest on: ratios between variants, measured in turns within one run.

    python -m triton_models.measure servers --weights DIR        one graph or an ensemble, instances x threads, on real
                                                                 servers
    python -m triton_models.measure queues  --weights DIR        what a queue policy costs requests that come one after
                                            the other
    python -m triton_models.measure graphs  --weights DIR        ONNX Runtime's options and int8; OpenVINO and NNCF
                                            where installed
    python -m triton_models.measure serving --server HOST:PORT   images/s and latency of `code` on a server that runs,
                                                                 on a GPU too

Rounds alternate between the variants, so that a busy machine slows all of them alike; the processor time per image does
not
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
from triton_models.configuration import CPU_ROWS

LAYOUTS = {
    "one graph, 1 x all cores": Options(code="fused", instances=1, threads=build.cores()),
    "one graph, 1 thread per core": Options(code="fused", instances=build.cores(), threads=1),
    "ensemble, 1 x all cores": Options(code="ensemble", instances=1, threads=build.cores()),
}
# images a request, requests at once
LOADS = {"1 x 1": (1, 1), "1 x 8": (1, 8), "32 x 1": (32, 1), "32 x 2": (32, 2), "256 x 2": (256, 2)}
# Lines for the dynamic batcher that Triton offers against overload, and none of them.
QUEUES = {
    "no policy": "",
    "time-out": "  default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 10000000 }\n",
    "two priorities": "  priority_levels: 2 default_priority_level: 1\n",
}
STALL_MS = 400
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Result:
    """Rounds of one variant under one load."""

    images_per_s: list[float] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)


def servers(folder: Path, rounds: int, seconds: float) -> dict[str, dict[str, Result]]:
    """Every layout on a server of its own, every load in turns: results by load and layout."""
    results = {load: {layout: Result() for layout in LAYOUTS} for load in LOADS}
    with ExitStack() as stack:
        running = {layout: _serve(stack, folder, options) for layout, options in LAYOUTS.items()}
        for round_number in range(rounds + 1):
            for load, (images, callers) in LOADS.items():
                for layout, (pid, client) in running.items():
                    rate, processor_ms, latencies_ms = _drive(client, pid, images, callers, seconds)
                    if round_number:  # the first warms up
                        result = results[load][layout]
                        result.images_per_s.append(rate)
                        result.processor_ms.append(processor_ms)
                        result.latency_ms.append(statistics.median(latencies_ms))
    return results


def queues(folder: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Latencies in ms of single images sent one after the other to one copy of the model, by queue policy."""
    found: dict[str, list[float]] = {name: [] for name in QUEUES}
    with ExitStack() as stack:
        running = {
            name: _serve(stack, folder, Options(instances=1, threads=1), policy) for name, policy in QUEUES.items()
        }
        for _ in range(rounds):
            for name, (pid, client) in running.items():
                found[name] += _drive(client, pid, 1, 1, seconds)[2]
    return found


def serving(address: str, rounds: int, seconds: float) -> dict[str, Result]:
    """The server at `address` under every load in turns; its processor time is not known."""
    from tritonclient import grpc  # noqa: PLC0415 - graphs does without

    results = {load: Result() for load in LOADS}
    with closing(grpc.InferenceServerClient(address)) as client:
        for round_number in range(rounds + 1):
            for load, (images, callers) in LOADS.items():
                rate, _, latencies_ms = _drive(client, None, images, callers, seconds)
                if round_number:
                    results[load].images_per_s.append(rate)
                    results[load].latency_ms.append(statistics.median(latencies_ms))
    return results


def _serve(stack: ExitStack, folder: Path, options: Options, policy: str = "") -> tuple[int, Any]:
    """Process id and client of a server on a repository of its own, both gone when `stack` closes."""
    from tritonclient import grpc  # noqa: PLC0415 - graphs does without

    from worker.local.server import free_port  # noqa: PLC0415
    from worker.local.triton_server import TritonServer  # noqa: PLC0415

    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    build.build(folder, "cpu", directory / "models", options)
    configuration = directory / "models" / "code" / "config.pbtxt"
    configuration.write_text(configuration.read_text().replace("dynamic_batching {\n", "dynamic_batching {\n" + policy))
    server = TritonServer(directory, {name: free_port() for name in TritonServer.port_names}, directory / "models")
    process = server.start()
    stack.callback(server.stop, grace_s=15)
    _wait(server)
    return process.pid, stack.enter_context(closing(grpc.InferenceServerClient(server.address)))


def graphs(folder: Path, rounds: int, batch: int) -> dict[str, tuple[float, float]]:
    """Processor milliseconds per image on one thread, `batch` images a run (least of the rounds), and largest score
    difference, by variant.
    """
    model = graph.fused(weights.load(folder)).SerializeToString()
    pixels = reference.images(batch)
    variants = _onnxruntime(model) | _onnxruntime_int8(model) | _openvino(model)
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
    levels = ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")
    return {f"ONNX Runtime {level}": _session(model, level) for level in levels}


def _onnxruntime_int8(model: bytes) -> dict[str, Callable[[reference.Images], Any]]:
    """Matrix products with constant weights in int8, a scale per column; activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "model.onnx", Path(work) / "int8.onnx"
        source.write_bytes(model)
        quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
        return {"ONNX Runtime int8, dynamic": _session(target.read_bytes(), "ORT_ENABLE_ALL")}


def _session(model: bytes, level: str) -> Callable[[reference.Images], Any]:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return partial(_run_onnxruntime, onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]))


def _openvino(model: bytes) -> dict[str, Callable[[reference.Images], Any]]:
    try:
        import openvino  # type: ignore[import-not-found]  # noqa: PLC0415 - not a dependency: measured, not used
    except ImportError:
        print("openvino is not installed here: its rows are left out (pip install openvino nncf)", file=sys.stderr)
        return {}
    core = openvino.Core()
    read = core.read_model(model)
    variants: dict[str, Callable[[reference.Images], Any]] = {}
    for name, form, precision in (
        ("f32", read, "f32"),
        ("bf16", read, "bf16"),
        ("int8, NNCF", _quantised(read), "f32"),
    ):
        if form is not None:
            settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
            variants[f"OpenVINO {name}"] = partial(
                _run_openvino, core.compile_model(form, "CPU", settings).create_infer_request()
            )
    return variants


def _quantised(read: Any) -> Any:
    """The model quantised after training, on images of other seeds than those it is tried on; None where NNCF is not
    installed.
    """
    try:
        import nncf  # type: ignore[import-not-found]  # noqa: PLC0415 - as openvino
    except ImportError:
        return None
    calibration = nncf.Dataset([{"images": reference.images(4, seed)} for seed in range(8)])
    return nncf.quantize(read.clone(), calibration, model_type=nncf.ModelType.TRANSFORMER, subset_size=8)


def _run_onnxruntime(session: Any, pixels: reference.Images) -> Any:
    return session.run(["scores"], {"images": pixels})[0]


def _run_openvino(request: Any, pixels: reference.Images) -> Any:
    return request.infer({"images": pixels})["scores"].copy()


def _drive(client: Any, pid: int | None, images: int, callers: int, seconds: float) -> tuple[float, float, list[float]]:
    """Images/s, processor ms per image (0 without `pid`), latencies in ms of `callers` threads that ask without a
    pause.
    """
    from tritonclient import grpc  # noqa: PLC0415

    tensor = grpc.InferInput("images", [images, 224, 224, 3], "UINT8")
    tensor.set_data_from_numpy(np.resize(reference.images(4), (images, 224, 224, 3)))
    latencies_ms: list[float] = []
    stop = time.perf_counter() + seconds

    def ask() -> None:
        while time.perf_counter() < stop:
            before = time.perf_counter()
            client.infer("code", [tensor])
            latencies_ms.append((time.perf_counter() - before) * 1000)

    threads = [threading.Thread(target=ask) for _ in range(callers)]
    start, used = time.perf_counter(), _processor_s(pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = len(latencies_ms) * images
    return done / (time.perf_counter() - start), (_processor_s(pid) - used) / done * 1000, latencies_ms


def _processor_s(pid: int | None) -> float:
    """Processor time of a server and of the model processes it started."""
    total = 0
    if pid is None:
        return total
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


def _print_servers(results: dict[str, dict[str, Result]]) -> None:
    for load, layouts in results.items():
        print(f"{load} (images a request x requests at once)")
        first = next(iter(layouts.values()))
        for name, result in layouts.items():
            ratio = statistics.median(
                mine / its for mine, its in zip(result.images_per_s, first.images_per_s, strict=True)
            )
            print(
                f"  {name:30} {statistics.median(result.images_per_s):6.1f} images/s ({ratio:4.2f})  "
                f"{min(result.processor_ms):6.1f} ms of a core per image  {statistics.median(result.latency_ms):7.0f} ms a request"
            )


def _print_queues(found: dict[str, list[float]]) -> None:
    for name, latencies_ms in found.items():
        stalls = sum(latency > STALL_MS for latency in latencies_ms)
        mean, median, longest = statistics.mean(latencies_ms), statistics.median(latencies_ms), max(latencies_ms)
        times = f"mean {mean:5.0f} ms, median {median:5.0f} ms, longest {longest:5.0f} ms"
        print(f"{name:16} {len(latencies_ms):5} requests: {times}, {stalls} above {STALL_MS} ms")


def _print_graphs(found: dict[str, tuple[float, float]]) -> None:
    base = next(iter(found.values()))[0]
    for name, (processor_ms, apart) in found.items():
        print(
            f"{name:36} {processor_ms:6.1f} ms of one core per image, {base / processor_ms:5.2f} times as fast, score difference {apart:.1e}"
        )


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m triton_models.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("servers", "queues", "graphs", "serving"))
    parser.add_argument("--weights", type=Path, metavar="DIR", help="for all but serving")
    parser.add_argument("--server", metavar="HOST:PORT", help="serving: its gRPC address")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round on a server")
    parser.add_argument("--images", type=int, default=CPU_ROWS["code"], help="graphs: images in one run")
    options = parser.parse_args(arguments)
    given, needed = (
        (options.server, "--server HOST:PORT") if options.what == "serving" else (options.weights, "--weights DIR")
    )
    if given is None:
        parser.error(f"{options.what}: {needed} is needed")
    match options.what:
        case "graphs":
            _print_graphs(graphs(options.weights, options.rounds, options.images))
        case "queues":
            _print_queues(queues(options.weights, options.rounds, options.seconds))
        case "servers":
            _print_servers(servers(options.weights, options.rounds, options.seconds))
        case "serving":
            for load, result in serving(options.server, options.rounds, options.seconds).items():
                rate, latency_ms = statistics.median(result.images_per_s), statistics.median(result.latency_ms)
                print(
                    f"{load:8} (images a request x requests at once) {rate:8.1f} images/s  {latency_ms:7.1f} ms a request"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())

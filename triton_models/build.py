"""Builds the model repository that Triton serves, from a weights folder, atomically.

    python -m triton_models.build --weights triton_models/weights/demo --flavour cpu --out REPOSITORY
    python -m triton_models.build --check REPOSITORY        hashes, and plans against this machine's TensorRT and GPU

Flavours: `cpu` (ONNX Runtime in the Python backend), `tensorrt` (plans; run it inside the serving image, on the GPU
that serves), `null` (constant scores under the same names, to measure everything but the model). The repository
appears, or replaces the previous one, only when it is complete; a failed build leaves the previous one as it was. Exit
1 with one line that names the file if something is wrong.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import typer
from onnx.reference import ReferenceEvaluator

from triton_models import configuration, detector_build, graph, plan, reference, weights
from triton_models.command import clear_errors, command_line
from triton_models.configuration import MODELS
from triton_models.detector import Detector, load
from triton_models.files import exchange
from triton_models.plan import Compiler
from triton_models.repository import (
    MANIFEST,
    SCHEMA,
    WEIGHTS_FOLDER,
    BuildError,
    check,
    check_shadow,
    file_hash,
    refuse_mount_point,
)
from triton_models.weights import WeightsError

__all__ = ["BuildError", "Options", "build", "check", "cores"]

Flavour = Literal["cpu", "tensorrt", "null"]
CodeKind = Literal["fused", "ensemble"]
NULL_VERSION = hashlib.sha256(b"assay null model").hexdigest()[:12]


@dataclass(frozen=True)
class Options:
    """What may differ between machines; the model's numbers do not depend on it, except for `precision`."""

    precision: graph.Precision = "fp32"
    code: CodeKind = "fused"
    instances: int = 0  # 0: two where there are two cores, as the worker keeps two calls in flight
    threads: int = 0  # per instance; 0 shares the cores out
    timing_cache: Path | None = None  # folder of TensorRT's timing caches


def build(
    source: Path | None,
    flavour: Flavour,
    out: Path,
    options: Options | None = None,
    compiler: Compiler | None = None,
    detectors: Sequence[Detector] = (),
) -> dict[str, Any]:
    """Write the repository `out` from the weights folder `source` (None for `null`) and return its manifest.

    `detectors`: others to serve beside `code`.

    `compiler`: for `tensorrt`, what builds the plans (this machine's when None). Raises WeightsError for a bad folder,
    PlanError for what TensorRT lacks or refuses, BuildError for a folder that is not ours; `out` is then as it was
    before.
    """
    options = options or Options()
    out = out.resolve()  # a link stays a link: what it leads to is replaced
    if flavour == "cpu" and options.precision == "bf16":
        raise BuildError(
            "flavour cpu cannot serve bf16: ONNX Runtime has no bfloat16 on a CPU; build with --precision fp32 "
            "or fp16, or --flavour tensorrt"
        )
    if flavour == "tensorrt":
        compiler = compiler or plan.here()
    refuse_mount_point(out)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BuildError(f"{out}: exists and is no model repository of ours (no {MANIFEST}); name another folder")
    model_version, graphs, groups = _graphs(source, flavour, options)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _draft(out) as draft:
        number = str(configuration.version_number(model_version))
        written = {name: _write_graph(model, draft / name / number) for name, model in graphs.items()}
        if source is not None and flavour != "null":
            _try(written, source, options.precision)
        for name, files in written.items():
            _write_model(name, graphs[name], files, (model_version, groups), options, compiler)
        if options.code == "ensemble":
            _write_ensemble(draft, model_version, groups)
        if source is not None and flavour != "null":
            _keep_weights(source, draft)
        for detector in detectors:
            detector_build.write(detector, draft, _copies(options), options.precision, compiler)
        manifest = _manifest(draft, flavour, model_version, options, compiler)
        manifest["detectors"] = {detector.spec.name: detector.version for detector in detectors}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if out.exists():
            exchange(draft, out)
        else:
            draft.rename(out)
    return manifest


def _manifest(
    draft: Path, flavour: Flavour, model_version: str, options: Options, compiler: Compiler | None
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model_version": model_version,
        "version_number": configuration.version_number(model_version),
        "flavour": flavour,
        "precision": options.precision,
        "code": options.code,
        "plans": {"tensorrt": compiler.trt.__version__, **asdict(compiler.gpu)} if compiler else None,
        "files": {
            path.relative_to(draft).as_posix(): file_hash(path) for path in sorted(draft.rglob("*")) if path.is_file()
        },
    }


def _copies(options: Options) -> tuple[int, int]:
    """Instances of each model, and threads for each."""
    instances = options.instances or min(2, cores())
    return instances, options.threads or max(1, cores() // instances)


def cores() -> int:
    """Cores this process may use: its affinity, and the container's CPU quota where there is one (cgroup v2)."""
    available = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            available = min(available, max(1, round(int(limit) / int(period))))
    return available


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, gone at the end. What killed builds left goes too, unless another build is at work
    beside it.
    """
    prefix = f".{out.name}.draft."
    lock = os.open(out.parent, os.O_RDONLY)
    try:
        if _nobody_else_holds(lock):
            for leftover in out.parent.glob(f"{glob.escape(prefix)}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        fcntl.flock(lock, fcntl.LOCK_SH)
        draft = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        try:
            draft.chmod(0o755)
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(lock)


def _nobody_else_holds(lock: int) -> bool:
    """Whether the lock could be taken at once, and is now held alone: no other build is at work."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@np.errstate(over="ignore")  # what float32 cannot hold is told by _try
def _graphs(
    source: Path | None, flavour: Flavour, options: Options
) -> tuple[str, dict[str, onnx.ModelProto], list[str]]:
    """Model version, graphs by model, and the names of the bank's groups."""
    if flavour == "null":
        return (
            NULL_VERSION,
            {name: graph.constant(name, *MODELS[name]) for name in MODELS if name != "code" or options.code == "fused"},
            [],
        )
    if source is None:
        raise BuildError(
            f"flavour {flavour} needs --weights DIR (a folder with {weights.ENCODER_FILE} and {weights.HEADS_FILE})"
        )
    loaded = weights.load(source)
    try:
        encoder = graph.encoder(loaded, options.precision)
    except WeightsError as error:  # beyond float16
        raise WeightsError(f"{source / weights.ENCODER_FILE}: {error}") from error
    graphs = {"code_encoder": encoder, "code_heads": graph.heads(loaded)}
    if options.code == "fused":
        graphs["code"] = graph.fused(loaded, options.precision)
    return loaded.version, graphs, loaded.group_names


def _write_graph(model: onnx.ModelProto, folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    return graph.write(model, folder / "model.onnx")


def _write_model(
    name: str,
    model: onnx.ModelProto,
    files: list[Path],
    described: tuple[str, list[str]],
    options: Options,
    compiler: Compiler | None,
) -> None:
    model_version, groups = described
    groups = groups if "nearest" in MODELS[name][1] else []
    folder = files[0].parent
    if compiler is None:
        code = folder / "model.py"
        shutil.copyfile(Path(__file__).with_name("python_backend.py"), code)
        hashes = {path.name: file_hash(path) for path in (code, *files)}
        instances, threads = _copies(options)
        text = configuration.python_model(
            name, model_version, hashes, instances=instances, threads=threads, groups=groups
        )
    else:
        key = compiler.key(file_hash(files[0]))
        dims = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim][1:]
        cache = options.timing_cache / f"{key.machine}.timings" if options.timing_cache else None
        (folder / key.file_name).write_bytes(compiler.compile(files[0], dims, cache))
        text = configuration.tensorrt_model(
            name, model_version, plan=key.file_name, capability=compiler.gpu.capability, groups=groups
        )
    (folder.parent / "config.pbtxt").write_text(text)


@np.errstate(all="ignore")
def _try(written: Mapping[str, list[Path]], source: Path, precision: graph.Precision) -> None:
    """Run the encoder's written graph, then the heads' (`code` is the same nodes): weights may be finite one by one and
    overflow together.

    Raises WeightsError, naming the file and the head.
    """
    pixels = reference.images(4)
    pixels[0] = 1  # what the server tries at its start, and the row of ones below
    embedding = _encode(written["code_encoder"][0], pixels, precision)
    if not np.isfinite(embedding).all():
        advice = "export it again" if precision == "fp32" else "build with --precision fp32"
        raise WeightsError(
            f"{source / weights.ENCODER_FILE}: its embeddings are NaN or infinite in {precision}; {advice}"
        )
    # Every step of the heads is looked at: a sigmoid makes 0 or 1 of what has overflown.
    given = {"embedding": np.concatenate([embedding, np.ones_like(embedding[:1])])}
    steps: Any = ReferenceEvaluator(str(written["code_heads"][0])).run(None, given, intermediate=True)
    for head in weights.HEADS:
        if not all(np.isfinite(values).all() for name, values in steps.items() if name.startswith(head)):
            raise WeightsError(
                f"{source / weights.HEADS_FILE}: the {head} head gives NaN or infinite numbers in float32; fit it again"
            )


def _encode(path: Path, pixels: reference.Images, precision: graph.Precision) -> npt.NDArray[Any]:
    """Embeddings by ONNX Runtime; by onnx's own evaluator, which is slower, where that is missing or lacks the
    precision.
    """
    with suppress(ImportError):
        if precision != "bf16":
            return graph.run(path, pixels, ["embedding"])["embedding"]
    (embedding,) = ReferenceEvaluator(str(path)).run(["embedding"], {"images": pixels})
    return np.asarray(embedding)


def _keep_weights(source: Path, draft: Path) -> None:
    """A copy inside `code`, where Triton does not look: the repository can then be verified, and built anew, without
    its source.
    """
    folder = draft / "code" / WEIGHTS_FOLDER
    folder.mkdir(parents=True)
    for name in (weights.ENCODER_FILE, weights.HEADS_FILE, weights.GROUPS_FILE, *weights.CARD_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_ensemble(draft: Path, model_version: str, groups: list[str]) -> None:
    # Triton wants the version's folder, git and many copy tools drop empty ones.
    folder = draft / "code" / str(configuration.version_number(model_version))
    folder.mkdir(parents=True)
    (folder / ".keep").touch()
    (draft / "code" / "config.pbtxt").write_text(configuration.ensemble(model_version, groups))


app = command_line(__doc__)


@app.command()
def command(
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Option("--weights", metavar="DIR", help="weights folder (see triton_models/weights.py)")
    ] = None,
    flavour: Flavour = "cpu",
    out: Annotated[Path | None, typer.Option(metavar="REPOSITORY", help="model repository to write")] = None,
    precision: Annotated[graph.Precision, typer.Option(help="of the encoder's matrix products")] = "fp32",
    code: Annotated[
        CodeKind,
        typer.Option(help="`code` as one graph, or as an ensemble, whose clients ask for both outputs or name none"),
    ] = "fused",
    instances: Annotated[
        int | None, typer.Option(min=1, help="CPU: copies of each model; by default two where there are two cores")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU: threads per copy; by default the cores, shared out")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="tensorrt: keep TensorRT's timings, so that a rebuild is quick")
    ] = None,
    detector: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="serve this detector beside `code` (docs/detectors.md); may be repeated"),
    ] = None,
    backbone: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="the graph of a detector whose folder lacks it, in the order of --detector"),
    ] = None,
    to_check: Annotated[
        Path | None, typer.Option("--check", metavar="REPOSITORY", help="check a repository instead of building one")
    ] = None,
) -> None:
    """Build a model repository, or check one."""
    where = out or to_check
    if where is None or (out is not None and to_check is not None):
        context.fail("either --out REPOSITORY or --check REPOSITORY is needed")
    with clear_errors(where):
        if to_check is not None:
            manifest, verb = check(to_check), "is whole"
            check_shadow(to_check)
        else:
            options = Options(precision, code, instances or 0, threads or 0, timing_cache)
            files = [*(backbone or []), *[None] * len(detector or [])]
            detectors = [load(folder, file) for folder, file in zip(detector or [], files, strict=False)]
            manifest, verb = build(source, flavour, where, options, detectors=detectors), "written"
    print(
        f"{where} {verb}: flavour {manifest['flavour']}, model version {manifest['model_version']}, "
        + "".join(f"{name} {version}, " for name, version in manifest.get("detectors", {}).items())
        + f"{len(manifest['files'])} files"
    )


if __name__ == "__main__":
    app(prog_name="python -m triton_models.build")

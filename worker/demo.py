"""`demo`: stack, worker, sample images, verdict table. Leaves no process behind that it started, unless told to keep
the stack.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import httpx

from worker import settings as settings_module
from worker import show
from worker.errors import SettingsError, Unavailable
from worker.local import install, paths, stack
from worker.local.server import free_port
from worker.send import find_sources
from worker.terminal import err, out

SAMPLES = Path(__file__).resolve().parent.parent / "tests" / "data" / "images"
WORKER_START_S = 60.0
VERDICT_TIMEOUT_S = 120.0


def demo(images: Sequence[Path], *, keep: bool) -> None:
    """Run it. Raises Unavailable where a server or the worker does not come up, SettingsError for paths that lead
    nowhere.
    """
    if not images and not SAMPLES.is_dir():
        raise SettingsError(
            ["demo: the sample images come with a checkout only; name some: python -m worker demo PATH..."]
        )
    sources = find_sources(images or [SAMPLES])
    directory = settings_module.load().stack.dir
    ran_before = stack.discover(directory) is not None
    try:
        beside = install.detectors(err.say) if _is_default() else {}
        models = install.model_repository(err.say, beside) if beside else None
        status = stack.up(directory, models=models, report=err.say)
        port = free_port()
        environment = {**os.environ, **status.env, "ASSAY_HTTP__PORT": str(port), **_asking(beside)}
        settings = settings_module.load(environ=environment)
        log_path = (directory or paths.run_directory()) / "logs" / "demo-worker.log"
        worker = _start_worker(environment, log_path)
        try:
            wait_until_ready(worker, port, log_path)
            show.send_and_show(settings, sources, wait_s=VERDICT_TIMEOUT_S, as_json=False)
        finally:
            stop_worker(worker)
    finally:
        if not keep and not ran_before:
            stack.down(directory)
    _what_next(kept=keep or ran_before, log_path=log_path, models=models, asking=_asking(beside))


def _is_default() -> bool:
    """Has nobody chosen models, detectors or a policy? Then the demo shows a policy over two detectors."""
    chosen = ("ASSAY_DETECTORS__", "ASSAY_POLICY__", "ASSAY_TRITON__")
    return install.WEIGHTS.is_dir() and not any(name.startswith(chosen) for name in os.environ)


def _asking(beside: Iterable[Path]) -> dict[str, str]:
    """The settings that ask these detectors, and decide by the policy that came with the first."""
    folders = list(beside)
    if not folders:
        return {}
    return {
        "ASSAY_DETECTORS__NAMES": ",".join(folder.name for folder in folders),
        "ASSAY_POLICY__PATH": str(folders[0] / "policy.toml"),
    }


def _start_worker(environment: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "worker", "run"],
            env=dict(environment),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until_ready(worker: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    """Until /readyz says so: images sent before would only show how long a start takes. Raises Unavailable."""
    deadline = time.monotonic() + WORKER_START_S
    last = "no answer yet"
    while time.monotonic() < deadline:
        if worker.poll() is not None:
            raise Unavailable("worker", f"it ended with exit code {worker.returncode}; its log is {log_path}")
        try:
            response = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2, trust_env=False)
        except httpx.HTTPError as error:
            last = str(error)
        else:
            if response.is_success:
                return
            last = response.text
        time.sleep(0.1)
    raise Unavailable("worker", f"not ready within {WORKER_START_S:.0f} s ({last.strip()}); its log is {log_path}")


def stop_worker(worker: subprocess.Popen[bytes]) -> None:
    """Drain it; a worker that does not end by itself is killed (what it had in work would be redelivered)."""
    if worker.poll() is None:
        worker.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + WORKER_START_S
    while worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if worker.poll() is None:
        worker.kill()
        worker.wait()


def _what_next(*, kept: bool, log_path: Path, models: Path | None, asking: Mapping[str, str]) -> None:
    """Commands that go on with the same models and the same policy."""
    up = f".venv/bin/python -m worker stack up --models {models}" if models else "make stack-up"
    servers = "The servers go on running" if kept else "The servers are stopped, their data is kept"
    lines = [
        "",
        f"The worker's log: {log_path}",
        f"{servers}. Next, in one terminal",
        *([] if kept else [f"  {up}"]),
        *[f"  export {name}={value}" for name, value in asking.items()],
        "  .venv/bin/python -m worker run",
        *(["and in another, with the same variables" if asking else "and in another"]),
        "  .venv/bin/python -m worker send YOUR_PHOTOS/ --wait",
        "  .venv/bin/python -m worker explain --file YOUR_PHOTOS/one.jpg",
        "What it all means: README.md",
    ]
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)

"""What a decoding process gets of the worker's environment: where its modules are, and no secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from worker.examine.launch import environment

SECRETS = {
    "ASSAY_REDIS__PASSWORD": "x",
    "ASSAY_KAFKA__SASL_PASSWORD_FILE": "/run/secrets/x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=x",
    "HTTPS_PROXY": "http://user:x@proxy",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "MY_TOKEN": "x",
}


def test_nothing_but_what_is_named_is_kept() -> None:
    """Whatever a worker is started with, now or later."""
    kept = environment({**SECRETS, "PATH": "/bin", "LD_LIBRARY_PATH": "/lib", "CUDA_VISIBLE_DEVICES": "0"})
    assert not kept.keys() & SECRETS.keys()
    assert {"PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"} <= kept.keys()


def test_modules_are_found_whatever_folder_is_current() -> None:
    """Relative entries of PYTHONPATH mean the worker's own folder."""
    kept = environment({"PYTHONPATH": os.pathsep.join(["planted", "/else", ""])})
    assert kept["PYTHONPATH"].split(os.pathsep) == [str(Path("planted").absolute()), "/else"]


def test_no_library_starts_threads_in_the_zygote() -> None:
    """They would not survive the fork."""
    assert environment({})["OPENBLAS_NUM_THREADS"] == "1"


def test_the_worker_itself_loads_no_decoder() -> None:
    """Whatever parses an image is imported in the children alone."""
    code = (
        "import sys; import worker.pipeline; "
        "print([name for name in sys.modules if name.split('.')[0] in ('PIL', 'nvidia', 'c2pa', 'pillow_heif')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

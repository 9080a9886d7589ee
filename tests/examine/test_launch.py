"""What a decoding process gets of the worker's environment: where its modules are, and no secret."""

from __future__ import annotations

import os
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

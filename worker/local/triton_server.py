"""The stack's Triton: the real tritonserver out of a wheel, Python backend only, serving the CPU flavour of
triton_models/.

Server-ready and model-ready stay true after a model's process has died (2.51), so only a real inference counts as
serving; loading the models anew heals that. A killed server leaves processes and shared memory behind, which the next
start clears.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.local import install
from worker.local.files import replace_text
from worker.local.server import HOST, NotServing, Server

MODEL = "code"
SHADOW = "code_shadow"
_CANARY_SHAPE = (1, 224, 224, 3)
_CANARIES = 4
_CONTROL_HEADER = "assay-control-key"
_CANARY_TIMEOUT_S = 30.0
_LOAD_TIMEOUT_S = 60.0
_STUBS_GONE_S = 10.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel keeps it


class TritonServer(Server):
    """tritonserver with explicit model control. `repository`: the model repository it serves."""

    name = "triton"
    port_names = ("triton_grpc", "triton_http", "triton_metrics")
    patience_s = 60.0  # a canary waits its turn behind the batches of a busy worker

    def __init__(self, directory: Path, ports: Mapping[str, int], repository: Path) -> None:
        super().__init__(directory, ports)
        self.repository = repository
        # The prefix of its shared memory, and the path of its stubs, tell this stack's leftovers from everyone else's.
        self.shared_memory_prefix = f"assay_{zlib.crc32(os.fsencode(directory)):08x}_"
        self.backends = self.directory / "backends"

    @property
    def stub(self) -> Path:
        """The program that runs one model: a copy in the run directory."""
        return self.backends / "python" / "triton_python_backend_stub"

    @property
    def _key_path(self) -> Path:
        return self.directory / "control.key"

    @property
    def control_key(self) -> str:
        """What a request that loads or unloads models must bring; made once for the run directory."""
        path = self._key_path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, secrets.token_hex(16), mode=0o600)
        return path.read_text(encoding="ascii")

    @property
    def env(self) -> dict[str, str]:
        return {"ASSAY_TRITON__URL": self.address, "ASSAY_TRITON__CONTROL_KEY_FILE": str(self._key_path)}

    def files(self) -> dict[str, str]:
        return {}

    def command(self) -> tuple[list[str], dict[str, str]]:
        environment = install.triton_environment()
        argv = [
            str(environment.tritonserver / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={self.backends}",
            "--model-control-mode=explicit",
            # One that fails to load ends the server: the shadow, which decides nothing, is loaded by `complete`.
            *(
                f"--load-model={path.parent.name}"
                for path in sorted(self.repository.glob("*/config.pbtxt"))
                if path.parent.name != SHADOW
            ),
            "--disable-auto-complete-config",
            "--exit-timeout-secs=5",
            # Loading a model runs its code, and any web page may send a request to a port of this machine.
            f"--http-restricted-api=model-repository,shared-memory,trace,logging:{_CONTROL_HEADER}={self.control_key}",
            # The worker loads a model whose process has died, and brings the key.
            f"--grpc-restricted-protocol=model-repository,trace,logging:{_CONTROL_HEADER}={self.control_key}",
            "--allow-gpu-metrics=false",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
            f"--backend-config=python,shm-default-byte-size={64 * 1024 * 1024}",
        ]
        for kind in ("grpc", "http", "metrics"):
            argv += [f"--{kind}-address={HOST}", f"--{kind}-port={self.ports[f'triton_{kind}']}"]
        libraries = [str(environment.site_packages / "nvidia_pytriton.libs"), str(environment.libpython_directory)]
        # The stub is an embedded interpreter: it looks python3 up on PATH and takes that one's site-packages.
        path = os.pathsep.join([str(environment.python.parent), os.defpath])
        return argv, {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PATH": path}

    def prepare(self) -> None:
        """Clear what a killed server left, and lay out the backend: the wheel keeps a stub per Python elsewhere."""
        super().prepare()
        self.clear_leftovers()
        source = install.triton_environment()
        shutil.rmtree(self.backends, ignore_errors=True)
        self.stub.parent.mkdir(parents=True)
        for file in (source.tritonserver / "backends" / "python").iterdir():
            (self.stub.parent / file.name).symlink_to(file)
        shutil.copy2(source.tritonserver / "python_backend_stubs" / source.version / self.stub.name, self.stub)
        self.stub.chmod(0o755)

    def stop(self, *, grace_s: float) -> None:
        """As every server; the stubs and shared memory that a killed one leaves behind go too."""
        super().stop(grace_s=grace_s)
        self.clear_leftovers()

    def clear_leftovers(self) -> None:
        """End the stubs, and remove the shared memory, of this stack's server. Only while that server is dead."""
        deadline = time.monotonic() + _STUBS_GONE_S
        while stubs := [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_stub(entry)]:
            for entry in stubs:
                with suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)
            if time.monotonic() > deadline:  # in the kernel's hands; their memory is removed all the same
                break
            time.sleep(0.02)
        for region in _SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"):
            region.unlink(missing_ok=True)

    def _is_stub(self, process: Path) -> bool:
        try:
            argv = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False
        return argv[0] == os.fsencode(self.stub)

    def check(self) -> None:
        """A black image gets an embedding and scores, from each copy of the model: the server takes them in turn."""
        for _ in range(_CANARIES):
            self._check_once()

    def _check_once(self) -> None:
        pixels = bytes(_CANARY_SHAPE[0] * _CANARY_SHAPE[1] * _CANARY_SHAPE[2] * _CANARY_SHAPE[3])
        tensor = {
            "name": "images",
            "shape": _CANARY_SHAPE,
            "datatype": "UINT8",
            "parameters": {"binary_data_size": len(pixels)},
        }
        # Both outputs by name: an ensemble refuses to give the one without the other.
        outputs = [{"name": name, "parameters": {"binary_data": False}} for name in ("embedding", "scores")]
        header = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
        status, answer = self._post(
            f"models/{MODEL}/infer",
            header + pixels,
            _CANARY_TIMEOUT_S,
            {"Inference-Header-Content-Length": str(len(header))},
        )
        if status != http.client.OK:
            message = answer.get("error", answer) if isinstance(answer, dict) else answer
            # Of a model that failed to load the server says "no version is available"; of a dead process "not healthy".
            raise NotServing(f"canary inference: {status} {message}", curable="not healthy" in str(message))
        if not all(output["data"] for output in answer["outputs"]):
            raise NotServing("canary inference: empty outputs (is NumPy 2 in the server's environment?)")

    def heal(self) -> None:
        """Unload and load every model that is loaded: its process is started anew."""
        names = sorted({MODEL, *self._loaded()})
        for action in ("unload", "load"):
            for name in names:
                self._order(action, name)

    def complete(self, report: Callable[[str], None]) -> None:
        """Load the shadow where the repository has one; a damaged one is left out, and said."""
        if not (self.repository / SHADOW / "config.pbtxt").is_file():
            return
        try:
            if SHADOW not in self._loaded():
                self._order("load", SHADOW)
        except NotServing as seen:
            report(
                f"triton: serves without {SHADOW}, which decides nothing: {seen}; "
                "end it with python -m triton_models.rollout unshadow"
            )

    def _loaded(self) -> set[str]:
        status, index = self._post("repository/index", b'{"ready": true}', 5.0)
        if status != http.client.OK:
            raise NotServing(f"repository index: {status} {index}")
        return {model["name"] for model in index}

    def _order(self, action: str, name: str) -> None:
        status, answer = self._post(f"repository/models/{name}/{action}", b"{}", _LOAD_TIMEOUT_S)
        if status != http.client.OK:
            message, _, _frames_of_the_backend = str(answer.get("error", answer)).partition("\n\nAt:")
            raise NotServing(f"{action} {name}: {status} {' '.join(message.split())}")

    def _post(
        self, path: str, body: bytes, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(HOST, self.ports["triton_http"], timeout=timeout_s)
        try:
            connection.request("POST", f"/v2/{path}", body, {_CONTROL_HEADER: self.control_key} | dict(headers or {}))
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else {}
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotServing(
                f"{HOST}:{self.ports['triton_http']}/v2/{path}: {error or type(error).__name__}"
            ) from error
        finally:
            connection.close()

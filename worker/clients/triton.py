"""Triton over gRPC: one client, a deadline on every call, pixels through shared memory where both share a host.

The only file that imports tritonclient. It tells two kinds of failure apart: `Unavailable` (the server is away, too
slow, or its model process has died) and `InferenceFailed` (the server is there and refuses or fails this request).
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from worker.clients.neighbours import OUTPUTS, groups_of, to_nearest
from worker.clients.shared_memory import FOLDER, Region, Regions, is_gone, remove_leftovers
from worker.contract import HEADS
from worker.crop import CROP_BYTES, CROP_PX, Pixels
from worker.errors import AssayError, Unavailable
from worker.evidence import Nearest
from worker.settings import TritonSettings

log = structlog.get_logger(__name__)
_RELOAD_INTERVAL_S = 10.0
CONTROL_HEADER = "triton-grpc-protocol-assay-control-key"  # Triton's prefix, and the name that the server was told
_REGISTER_S = 2.0
_OWN_REGIONS = 2
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED", "ABORTED")
_DEAD_MODEL = re.compile(
    r"is not healthy|is not ready|unknown model|unloading|failed to (load|initialize)|stub process", re.IGNORECASE
)
_LOST_REGION = re.compile(r"shared memory region", re.IGNORECASE)


class InferenceFailed(AssayError):
    """The server answers, and fails this request."""


@dataclass(frozen=True, slots=True)
class Inference:
    """`embedding` float32 [N, 192] and `scores` float32 [N, 3] (linear, knn, svm) of one call; `nearest` of each image,
    or empty where the model does not tell.
    """

    embedding: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    nearest: tuple[Nearest, ...] = ()


class Triton:
    """The model `settings.model_name` behind one gRPC client; thread-safe. `batch_max_items` sizes shared memory."""

    def __init__(
        self,
        settings: TritonSettings,
        batch_max_items: int,
        regions: Regions | None = None,
        row_bytes: int = CROP_BYTES,
    ) -> None:
        """Pixels that lie in one of `regions` are read there; others are copied into a region of the client's own.

        `row_bytes`: of one image's pixels.
        """
        self._settings = settings
        self._model = settings.model_name
        scheme, _, address = settings.url.rpartition("://")
        self.address = address
        self._client: Any = grpcclient.InferenceServerClient(
            address,
            ssl=scheme == "grpcs",
            root_certificates=_path(settings.ssl_ca_path),
            private_key=_path(settings.ssl_key_path),
            certificate_chain=_path(settings.ssl_cert_path),
            # A server that came back is found again within a second, not after grpc's own two minutes.
            channel_args=[
                # The server is inside: a proxy of the environment is for the outside, and would see the images.
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
            ],
        )
        self._control = (
            {CONTROL_HEADER: settings.control_key.get_secret_value()} if settings.control_key is not None else None
        )
        self._region_bytes = batch_max_items * row_bytes
        self._shared = [region for region in regions.all if region.name] if regions else []
        self._groups: tuple[str, ...] | None = None
        self._reload_lock = threading.Lock()
        self._reloaded_at = -_RELOAD_INTERVAL_S
        self._regions: queue.SimpleQueue[Region | None] | None = None
        self._regions_lock = threading.Lock()
        self._made: list[Region] = []

    def is_ready(self, timeout_s: float = 1.0) -> bool:
        """Does the server say that it and the model are ready? (It says so, too, when the model's process has died.)"""
        try:
            return bool(self._client.is_model_ready(self._model, client_timeout=timeout_s))
        except InferenceServerException:
            return False

    def configuration(self, timeout_s: float = 2.0) -> dict[str, Any]:
        """The model's configuration (Triton's model_config.proto) as the server has it. Raises Unavailable."""
        try:
            config: dict[str, Any] = self._client.get_model_config(self._model, client_timeout=timeout_s, as_json=True)[
                "config"
            ]
        except InferenceServerException as error:
            raise Unavailable("triton", f"{self.address}: {error.message()}") from error
        return config

    def model_version(self, timeout_s: float = 2.0) -> str:
        """The parameter `model_version` of the model, 12 hex digits. Raises Unavailable."""
        config = self.configuration(timeout_s)
        version: str = config.get("parameters", {}).get("model_version", {}).get("string_value", "")
        if not re.fullmatch(r"[0-9a-f]{12}", version):
            raise Unavailable(
                "triton",
                f"model {self._model} has no parameter model_version of 12 hex digits (has {version!r}); "
                "build it with triton_models.build",
            )
        self._groups = groups_of(config)
        return version

    @property
    def groups(self) -> tuple[str, ...] | None:
        """Names of the bank's groups as `model_version` last found them; None where the model tells no neighbours."""
        return self._groups

    def infer(self, pixels: Pixels, *, timeout_s: float | None = None) -> Inference:
        """Scores of `pixels`, uint8 [N, 224, 224, 3]. Raises Unavailable or InferenceFailed."""
        # `scores` alone is refused by ensembles of Triton 24.10, because `embedding` also feeds a step.
        outputs, count, groups = ("embedding", "scores"), len(pixels), self._groups
        if groups is None:
            result = self._call(pixels, outputs, timeout_s)
        else:
            try:
                result = self._call(pixels, (*outputs, *OUTPUTS), timeout_s)
            except InferenceFailed:
                self.model_version()
                if self._groups is not None:
                    raise
                groups, result = None, self._call(pixels, outputs, timeout_s)  # an older model took its place
        embedding = self._tensor(result, "embedding", count)
        scores = self._tensor(result, "scores", count, len(HEADS))
        return Inference(embedding, scores, _nearest(result, count, groups))

    def score(self, pixels: Pixels, heads: int, *, timeout_s: float | None = None) -> npt.NDArray[np.float32]:
        """Scores float32 [N, `heads`] of `pixels`, uint8 [N, H, W, 3], by a model that need give nothing else.

        Raises Unavailable or InferenceFailed.
        """
        return self._tensor(self._call(pixels, ("scores",), timeout_s), "scores", len(pixels), heads)

    def _call(self, pixels: Pixels, outputs: Sequence[str], timeout_s: float | None) -> Any:
        tensor = grpcclient.InferInput("images", list(pixels.shape), "UINT8")
        with self._placed(pixels) as place:
            try:
                return self._infer(tensor, pixels, place, outputs, timeout_s)
            except InferenceServerException as error:
                if place is None or not _LOST_REGION.search(error.message()):
                    raise self._failure(error) from error
            try:  # the server was started anew and has forgotten the region
                self._register(place[0])
                return self._infer(tensor, pixels, place, outputs, timeout_s)
            except InferenceServerException as error:
                raise self._failure(error) from error

    def _infer(
        self,
        tensor: Any,
        pixels: Pixels,
        place: tuple[Region, int] | None,
        outputs: Sequence[str],
        timeout_s: float | None,
    ) -> Any:
        if place is None:
            tensor.set_data_from_numpy(pixels)
        else:
            region, offset = place
            tensor.set_shared_memory(region.name, pixels.nbytes, offset)
        return self._client.infer(
            self._model,
            [tensor],
            outputs=[grpcclient.InferRequestedOutput(name) for name in outputs],
            client_timeout=timeout_s or self._settings.deadline_ms / 1000,
        )

    def _tensor(self, result: Any, name: str, count: int, width: int | None = None) -> npt.NDArray[np.float32]:
        """An output of the answer. Raises Unavailable: what is not as described is the server's fault, no image's."""
        found: npt.NDArray[np.float32] | None
        try:
            found = result.as_numpy(name)
        except Exception as error:  # whatever the client makes of fewer bytes than the shape needs, or of no such type
            raise self._unreadable(f"{name} cannot be read ({error or type(error).__name__})") from error
        if found is None or found.dtype != np.float32 or found.ndim != 2 or len(found) != count:
            got = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise self._unreadable(f"{name} are {got}, not float32 for {count} images")
        if width is not None and found.shape[1] != width:
            raise self._unreadable(f"there are {found.shape[1]} scores, not {width}")
        return found

    def _unreadable(self, problem: str) -> Unavailable:
        return Unavailable("triton", f"model {self._model} answered: {problem}: broken server environment?")

    def _failure(self, error: InferenceServerException) -> AssayError:
        status, message = error.status() or "", error.message() or ""
        if _is_away(error) or _DEAD_MODEL.search(message):
            if _DEAD_MODEL.search(message) and self._settings.reload_unhealthy:
                self._reload()
            return Unavailable("triton", f"{self.address}: {message}")
        return InferenceFailed(f"{status} {message}".strip())

    def _reload(self) -> None:
        """A killed Python stub is never restarted by the server (2.51), while it goes on calling itself ready: only
        loading anew heals it.
        """
        with self._reload_lock:
            if time.monotonic() - self._reloaded_at < _RELOAD_INTERVAL_S:
                return
            self._reloaded_at = time.monotonic()
        try:
            for part in self._parts():
                self._client.unload_model(part, headers=self._control, client_timeout=10.0)
            self._client.load_model(self._model, headers=self._control, client_timeout=30.0)
            log.warning("model_reloaded", model=self._model, reason="its process in the server had died")
        except InferenceServerException as error:
            log.warning("model_reload_refused", model=self._model, error=error.message())

    def _parts(self) -> list[str]:
        """The model and the models it is made of, the whole first."""
        config = self._client.get_model_config(self._model, client_timeout=2.0, as_json=True)["config"]
        steps = config.get("ensemble_scheduling", {}).get("step", [])
        return [self._model, *(step["model_name"] for step in steps)]

    @contextlib.contextmanager
    def _placed(self, pixels: Pixels) -> Iterator[tuple[Region, int] | None]:
        """The region that the server finds `pixels` in, and where; None where they go over gRPC."""
        regions = self._regions or self._make_regions()
        for shared in self._shared:
            if (offset := shared.offset_of(pixels)) is not None:
                yield shared, offset
                return
        region = regions.get()
        try:
            if region is None or pixels.nbytes > self._region_bytes:
                yield None
            else:
                region.fill(pixels)
                yield region, 0
        finally:
            regions.put(region)

    def _make_regions(self) -> queue.SimpleQueue[Region | None]:
        with self._regions_lock:
            if self._regions is None:
                regions: queue.SimpleQueue[Region | None] = queue.SimpleQueue()
                for region in self._registered():
                    regions.put(region)
                self._regions = regions
            return self._regions

    def _registered(self) -> list[Region | None]:
        # Batches come in regions of their own. These are for the canary and for what was gathered one by one.
        count = _OWN_REGIONS if self._shared else self._settings.calls_in_flight + 1
        if not _shares_host(self._settings):
            return [None] * count
        try:
            self._remove_leftovers()
            while len(self._made) < count:
                self._made.append(Region(self._region_bytes))
                self._register(self._made[-1])
            for region in self._shared:
                self._register(region)
        except (InferenceServerException, OSError) as error:
            self._remove(self._made)
            self._made = []
            if isinstance(error, InferenceServerException) and _is_away(error):
                raise Unavailable("triton", f"{self.address}: {error.message()}") from error
            log.warning("shared_memory_off", reason=str(error), action="pixels go over gRPC")
            self._remove(self._shared)
            self._shared = []
            return [None] * count
        return list(self._made)

    def _register(self, region: Region) -> None:
        with contextlib.suppress(InferenceServerException):
            self._client.unregister_system_shared_memory(region.name, client_timeout=_REGISTER_S)
        self._client.register_system_shared_memory(
            region.name, f"/{region.name}", region.capacity_bytes, client_timeout=_REGISTER_S
        )

    def _remove_leftovers(self) -> None:
        """Regions of dead workers: their names, and the server's hold on their memory."""
        remove_leftovers()
        for name in self._client.get_system_shared_memory_status(client_timeout=_REGISTER_S).regions:
            if is_gone(name):
                with contextlib.suppress(InferenceServerException):  # a call still uses it
                    self._client.unregister_system_shared_memory(name, client_timeout=_REGISTER_S)

    def _remove(self, regions: Sequence[Region]) -> None:
        """Those of calls that hang, too; a server that does not answer is asked once."""
        asked = True
        for region in regions:
            if asked:
                try:
                    self._client.unregister_system_shared_memory(region.name, client_timeout=_REGISTER_S)
                except InferenceServerException as error:
                    asked = not _is_away(error)
            region.unlink()

    def close(self) -> None:
        """Calls under way fail."""
        self._remove([*self._made, *self._shared])
        self._client.close()


def pixel_regions(
    settings: TritonSettings, count: int, batch_max_items: int, size_px: tuple[int, int] = (CROP_PX, CROP_PX)
) -> Regions:
    """Regions for `count` batches: where the server reads them, or where only this process and its children do.

    `size_px`: height and width of an image's pixels.
    """
    if _shares_host(settings):
        try:
            return Regions(count, batch_max_items, FOLDER, size_px)
        except OSError as error:
            log.warning("shared_memory_off", reason=str(error), action="pixels go over gRPC")
    return Regions(count, batch_max_items, None, size_px)


def _nearest(result: Any, count: int, groups: tuple[str, ...] | None) -> tuple[Nearest, ...]:
    if groups is None:
        return ()
    with contextlib.suppress(Exception):  # whatever the client makes of damaged outputs, the scores are there
        return to_nearest(result.as_numpy(OUTPUTS[0]), result.as_numpy(OUTPUTS[1]), count, groups)
    return ()


def _shares_host(settings: TritonSettings) -> bool:
    host = settings.url.rpartition("://")[2].rpartition(":")[0]
    local = host in ("localhost", "127.0.0.1", "[::1]")
    return settings.shared_memory == "system" or (settings.shared_memory == "auto" and local)


def _is_away(error: InferenceServerException) -> bool:
    return any(code in (error.status() or "") for code in _AWAY)


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)

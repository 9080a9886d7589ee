"""All groups together, and the names of their fields."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ConfigDict
from pydantic.fields import FieldInfo

from worker.settings.console import ConsoleSettings
from worker.settings.detectors import DetectorSettings
from worker.settings.images import (
    CacheSettings,
    DecodeSettings,
    EvidenceSettings,
    FlowSettings,
    IntakeSettings,
    LimitSettings,
    PolicySettings,
    ReferenceSettings,
    ShadowSettings,
)
from worker.settings.process import (
    HttpSettings,
    LogSettings,
    RetrySettings,
    RunSettings,
    StackSettings,
    TracingSettings,
)
from worker.settings.servers import KafkaSettings, RedisSettings, TritonSettings
from worker.settings.types import Group

PREFIX = "ASSAY_"
DELIMITER = "__"


class Settings(Group):
    """All settings of the worker."""

    model_config = ConfigDict(frozen=True)

    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    triton: TritonSettings = TritonSettings()
    intake: IntakeSettings = IntakeSettings()
    flow: FlowSettings = FlowSettings()
    decode: DecodeSettings = DecodeSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    limits: LimitSettings = LimitSettings()
    references: ReferenceSettings = ReferenceSettings()
    cache: CacheSettings = CacheSettings()
    policy: PolicySettings = PolicySettings()
    detectors: DetectorSettings = DetectorSettings()
    shadow: ShadowSettings = ShadowSettings()
    http: HttpSettings = HttpSettings()
    retry: RetrySettings = RetrySettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    run: RunSettings = RunSettings()
    stack: StackSettings = StackSettings()
    console: ConsoleSettings = ConsoleSettings()

    @property
    def shadow_triton(self) -> TritonSettings:
        """How the shadow model is asked: on the same server, over plain gRPC, and nobody waits for it."""
        return self.triton.model_copy(
            update={"model_name": self.shadow.model_name, "shared_memory": "off", "reload_unhealthy": False}
        )

    def detector_triton(self, name: str) -> TritonSettings:
        """How the detector `name` is asked: on the same server, with a deadline and calls of its own."""
        own = self.detectors
        return self.triton.model_copy(
            update={"model_name": name, "deadline_ms": own.deadline_ms, "calls_in_flight": own.calls_in_flight}
        )


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """(group, field, info) of every setting, in the order of the groups above."""
    for group, info in Settings.model_fields.items():
        assert isinstance(info.annotation, type) and issubclass(info.annotation, Group)
        for name, field in info.annotation.model_fields.items():
            yield group, name, field


def variable(group: str, name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{group}{DELIMITER}{name}".upper()


def is_secret(field: FieldInfo) -> bool:
    """May the setting hold a password? Then no message shows its value, and it may come from a file."""
    return "SecretStr" in str(field.annotation)

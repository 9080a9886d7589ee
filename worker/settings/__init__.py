"""Every knob, once. Environment `ASSAY_<GROUP>__<FIELD>` beats the TOML file of `--config`, which beats the defaults.

A secret may also come from a file: `ASSAY_<GROUP>__<FIELD>_FILE=/run/secrets/…`. A field's description is its
documentation (docs/settings.md is generated from it): say what it does; the unit is in the name. A new group goes into
`servers`, `images` or `process`, and into `schema.Settings`.
"""

from worker.settings.console import ConsoleSettings
from worker.settings.detectors import DetectorSettings
from worker.settings.images import (
    CacheSettings,
    DecodeSettings,
    FlowSettings,
    IntakeSettings,
    LimitSettings,
    PolicySettings,
    ReferenceSettings,
    ShadowSettings,
)
from worker.settings.loading import chosen, load
from worker.settings.process import (
    HttpSettings,
    LogSettings,
    RetrySettings,
    RunSettings,
    StackSettings,
    TracingSettings,
)
from worker.settings.schema import PREFIX, Settings, fields, is_secret, variable
from worker.settings.servers import KafkaSettings, RedisSettings, TritonSettings
from worker.settings.types import MIB, Group

__all__ = [
    "MIB",
    "PREFIX",
    "CacheSettings",
    "ConsoleSettings",
    "DecodeSettings",
    "DetectorSettings",
    "FlowSettings",
    "Group",
    "HttpSettings",
    "IntakeSettings",
    "KafkaSettings",
    "LimitSettings",
    "LogSettings",
    "PolicySettings",
    "RedisSettings",
    "ReferenceSettings",
    "RetrySettings",
    "RunSettings",
    "Settings",
    "ShadowSettings",
    "StackSettings",
    "TracingSettings",
    "TritonSettings",
    "chosen",
    "fields",
    "is_secret",
    "load",
    "variable",
]

"""The settings of a command: the user's own, or those of the local stack where no address is set and one runs."""

from __future__ import annotations

import os
from pathlib import Path

from worker import settings as settings_module
from worker.settings import Settings
from worker.terminal import err

ADDRESSES = (("kafka", "bootstrap_servers"), ("redis", "url"), ("triton", "url"))


def load_settings(config: Path | None) -> Settings:
    """The settings, policy checked; says so where it takes the local stack's addresses. Raises SettingsError."""
    from worker.local import stack

    environ = dict(os.environ)
    settings = settings_module.load(config, environ, with_policy=True)
    if settings_module.chosen(config, environ) & set(ADDRESSES):
        return settings
    found = stack.discover(settings.stack.dir)
    if not found:
        return settings
    err.say(f"using the local stack: {', '.join(f'{name}={value}' for name, value in found.items())}")
    return settings_module.load(config, environ | found, with_policy=True)

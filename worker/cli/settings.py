"""The settings of a command: the user's own, or those of the local stack where no address is set and one runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from worker import settings as settings_module
from worker.errors import SettingsError
from worker.settings import Settings, chosen, variable
from worker.terminal import err

ADDRESSES = (("kafka", "bootstrap_servers"), ("redis", "url"), ("triton", "url"))


def load_settings(config: Path | None) -> Settings:
    """The settings, policy checked; says so where it takes the local stack's addresses. Raises SettingsError."""
    from worker.local import stack

    environ = dict(os.environ)
    settings = load_with_policy(config, environ)
    if any(address in chosen(config, environ) for address in ADDRESSES):
        return settings
    found = stack.discover(settings.stack.dir)
    if not found:
        return settings
    err.say(f"using the local stack: {', '.join(f'{name}={value}' for name, value in found.items())}")
    return settings_module.load(config, environ | found)


def load_with_policy(config: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings. Raises SettingsError with what is wrong with them, the policies' files and the trust list, all at
    once.
    """
    from worker.examine.provenance.trust import load_anchors
    from worker.policy import load_policy

    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = settings_module.load(config, environ)
    except SettingsError as error:
        problems += error.problems
    given = chosen(config, environ)
    for field in ("path", "shadow_path"):
        try:
            if path := given.get(("policy", field)):
                load_policy(Path(path), variable("policy", field))
        except SettingsError as error:
            problems += error.problems
    try:
        if path := given.get(("evidence", "c2pa_trust_path")):
            load_anchors(Path(path))
    except SettingsError as error:
        problems += error.problems
    if problems or settings is None:
        raise SettingsError(problems)
    return settings

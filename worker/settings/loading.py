"""From a TOML file and the environment to checked settings, every problem at once and on a line of its own.

pydantic-settings is not used: it can neither name the variable behind an error nor refuse a misspelt nested one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from worker.errors import SettingsError
from worker.settings.schema import PREFIX, Settings, fields, is_secret, variable
from worker.settings.types import BROKEN_RULE


def load(config: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment, the TOML file `config` and the defaults, in that order.

    Raises SettingsError with every problem at once, one line each, naming the variable (or the file's key), the value
    (never a secret's) and what is expected.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], str] = {}
    if config is not None:
        _read_file(config, values, origin, problems)
    _read_environment(environ, values, origin, problems)
    settings: Settings | None = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += _describe(error, values, origin)
    if problems or settings is None:
        raise SettingsError(problems)
    return settings


def chosen(config: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[tuple[str, str], Any]:
    """What the environment or the file sets, unchecked: values by group and field."""
    values: dict[str, dict[str, Any]] = {}
    if config is not None:
        _read_file(config, values, {}, [])
    _read_environment(os.environ if environ is None else environ, values, {}, [])
    return {(group, name): value for group, names in values.items() for name, value in names.items()}


def _read_file(
    config: Path, values: dict[str, dict[str, Any]], origin: dict[tuple[str, str], str], problems: list[str]
) -> None:
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"--config {config}: {error}")
        return
    known = {(group, name) for group, name, _ in fields()}
    groups = sorted({group for group, _ in known})
    for group, table in document.items():
        if not isinstance(table, dict) or group not in groups:
            problems.append(f"{config}: [{group}] is no group of settings; expected one of {', '.join(groups)}")
            continue
        for name, value in table.items():
            if (group, name) not in known:
                problems.append(
                    f"{config}: {group}.{name} is no setting{_did_you_mean(name, [n for g, n in known if g == group])}"
                )
                continue
            values.setdefault(group, {})[name] = value
            origin[group, name] = f"{config}: {group}.{name}"


def _read_environment(
    environ: Mapping[str, str],
    values: dict[str, dict[str, Any]],
    origin: dict[tuple[str, str], str],
    problems: list[str],
) -> None:
    known = {variable(group, name): (group, name, field) for group, name, field in fields()}
    for key in sorted(k for k in environ if k.startswith(PREFIX)):
        text = environ[key]
        if key in known:
            group, name, _ = known[key]
        elif (
            key.endswith("_FILE")
            and key.removesuffix("_FILE") in known
            and is_secret(known[key.removesuffix("_FILE")][2])
        ):
            if key.removesuffix("_FILE") in environ:
                problems.append(f"{key}: {key.removesuffix('_FILE')} is set too; set one of the two")
                continue
            group, name, _ = known[key.removesuffix("_FILE")]
            try:
                text = Path(text).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{key}={environ[key]!r}: {error}")
                continue
        else:
            problems.append(f"{key} is no setting{_did_you_mean(key, list(known))}")
            continue
        values.setdefault(group, {})[name] = text
        origin[group, name] = key


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else "; docs/settings.md lists them all"


def _describe(
    error: ValidationError, values: Mapping[str, Mapping[str, Any]], origin: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    by_name = {(group, name): field for group, name, field in fields()}
    for item in error.errors(include_url=False):
        context = item.get("ctx", {})
        location = [str(part) for part in item["loc"]]
        if item["type"] == BROKEN_RULE:
            location.append(context["setting"])
        group, name = location[0], location[1]
        field = by_name[group, name]
        where = origin.get((group, name), variable(group, name))
        value = "(secret)" if is_secret(field) else repr(values.get(group, {}).get(name))
        problem = str(context["error"]) if item["type"] == "value_error" else item["msg"]
        yield f"{where}={value}: {problem} ({field.description})"

"""Who may: a file of users with roles and argon2 hashes, read anew when it changes.

[users.anna]
roles = ["reviewer"]          # reviewer decides; lead decides what is contested, too; auditor reads
password = "$argon2id$…"      # python -m worker console user anna --role reviewer
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import argon2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.console.gate import Gate
from worker.errors import SettingsError
from worker.settings import variable

Role = Literal["reviewer", "lead", "auditor"]
ROLES: tuple[Role, ...] = ("reviewer", "lead", "auditor")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
LEAST_PASSWORD_CHARACTERS = 12
_HASHER = argon2.PasswordHasher()
# What is compared with where there is no such user: an answer takes as long as for one that there is.
_NOBODY = _HASHER.hash("nobody has this password")
_HASHED_AT_ONCE, _HASHES_WAITING, _HASH_WAIT_S = 2, 8, 5.0  # each takes 64 MiB and some tenths of a second


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who was let in."""

    name: str
    roles: frozenset[Role]

    @property
    def may_review(self) -> bool:
        return bool(self.roles & {"reviewer", "lead"})

    @property
    def is_lead(self) -> bool:
        return "lead" in self.roles

    @property
    def may_read(self) -> bool:
        """What others did."""
        return bool(self.roles & {"lead", "auditor"})


class User(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: list[Role] = Field(min_length=1)
    password: str = Field(pattern=r"^\$argon2")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    users: dict[str, User]


class Users:
    """Those of the file. Raises SettingsError where it cannot be read at the start; later the old ones stay."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._gate = Gate("many log in", at_once=_HASHED_AT_ONCE, waiting=_HASHES_WAITING, wait_s=_HASH_WAIT_S)
        self._mark: tuple[int, int, int] | None = None
        self._users = read(path)
        self._mark = self._looks()
        if not self._users:
            raise SettingsError(
                [f"{_where(path)}: nobody is in it; add somebody: python -m worker console user NAME --role lead"]
            )

    def person(self, name: str) -> Person | None:
        user = self._current().get(name)
        return Person(name, frozenset(user.roles)) if user else None

    def log_in(self, name: str, password: str) -> Person | None:
        """The person, or None; as slow for a name that there is not. Raises Busy."""
        user = self._current().get(name)
        try:
            with self._gate.passing():
                _HASHER.verify(user.password if user else _NOBODY, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return None
        return self.person(name) if user else None

    def mark_of(self, name: str) -> str:
        """Changes with the user's password, so that sessions end with it."""
        user = self._current().get(name)
        return hashlib.sha256((user.password if user else "").encode()).hexdigest()[:16]

    def _current(self) -> dict[str, User]:
        with self._lock:
            mark = self._looks()
            if mark is not None and mark != self._mark:
                self._mark = mark
                try:
                    self._users = read(self._path)
                except SettingsError as error:
                    import structlog  # noqa: PLC0415 - a rare event

                    structlog.get_logger(__name__).error("users_unreadable", error=str(error), action="the old stay")
            return self._users

    def _looks(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _where(path: Path) -> str:
    return f"{variable('console', 'users_path')}={path}"


def read(path: Path) -> dict[str, User]:
    """The users of the file. Raises SettingsError."""
    try:
        users = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).users
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError([f"{_where(path)}: {error}"]) from None
    except ValidationError as error:  # the values are hashes: they are not shown
        lines = [f"{_where(path)}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise SettingsError(lines) from None
    if wrong := [name for name in users if not NAME.fullmatch(name)]:
        raise SettingsError([f"{_where(path)}: {name!r} is no name of a user: {NAME.pattern}" for name in wrong])
    return users


def put(path: Path, name: str, roles: Sequence[str], password: str) -> None:
    """Add or change a user. Raises SettingsError."""
    problems = []
    if not NAME.fullmatch(name):
        problems.append(f"{name!r} is no name of a user: {NAME.pattern}")
    if len(password) < LEAST_PASSWORD_CHARACTERS:
        problems.append(f"a password has {LEAST_PASSWORD_CHARACTERS} characters at least, this one {len(password)}")
    given = [role for role in ROLES if role in roles]
    if not given or set(roles) - set(ROLES):
        problems.append(f"--role {', '.join(roles) or 'is missing'}: some of {', '.join(ROLES)} are expected")
    if problems:
        raise SettingsError(problems)
    users = read(path) if path.exists() else {}
    _write(path, {**users, name: User(roles=given, password=_HASHER.hash(password))})


def remove(path: Path, name: str) -> bool:
    """Whether the user was there. Raises SettingsError."""
    users = read(path)
    if name not in users:
        return False
    _write(path, {other: user for other, user in users.items() if other != name})
    return True


def _write(path: Path, users: dict[str, User]) -> None:
    lines = ["# Users of the review console; written by `python -m worker console user`.\n\n[users]\n"]
    for name, user in sorted(users.items()):
        roles = ", ".join(json.dumps(role) for role in user.roles)
        lines.append(f"\n[users.{json.dumps(name)}]\nroles = [{roles}]\npassword = {json.dumps(user.password)}\n")
    try:
        handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as out:  # mkstemp makes it readable by its owner alone
            out.write("".join(lines))
        os.replace(made, path)  # noqa: PTH105 - atomic, by name
    except OSError as error:
        raise SettingsError([f"{_where(path)}: {error.strerror or error}"]) from None

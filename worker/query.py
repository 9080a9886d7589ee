"""`query`: the stored verdict of an image, by id, by hash or by a file with the same bytes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pydantic import ValidationError

from worker.clients.redis import Store
from worker.contract import Verdict
from worker.errors import NotFound, SettingsError
from worker.settings import RedisSettings


def stored_verdict(settings: RedisSettings, *, image_id: str | None, sha256: str | None, file: Path | None) -> str:
    """The verdict as JSON, on one line. Raises SettingsError unless exactly one is given, NotFound, Unavailable."""
    if sum(given is not None for given in (image_id, sha256, file)) != 1:
        raise SettingsError(["query: exactly one of ID, --sha256 and --file is expected"])
    if file is not None:
        try:
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise SettingsError([f"--file {file}: {error.strerror or error}"]) from None
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256 := sha256.lower()):
        raise SettingsError([f"--sha256 {sha256!r}: 64 hex digits are expected"])
    store = Store(settings)
    try:
        if sha256 is not None:
            image_id = store.latest_id(sha256)
        stored = store.verdict(image_id) if image_id is not None else {}
    finally:
        store.close()
    if "json" not in stored:
        raise NotFound(f"no verdict on {image_id or sha256 or file}")
    if sha256 is not None and stored.get("sha256") != sha256:
        raise NotFound(
            f"no verdict on {sha256}: its latest id {image_id} has been judged on other bytes since "
            f"(query {image_id} shows it)"
        )
    verdict = read_stored(stored["json"], image_id)
    return stored["json"] if "\n" not in stored["json"] else verdict.to_json()


def read_stored(document: str, image_id: str | None) -> Verdict:
    """A verdict as it was stored. Raises NotFound for what is none: others may write to the same Redis."""
    try:
        return Verdict.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise NotFound(
            f"the stored verdict on {image_id} is not readable: it was not written by Assay ({where}: {first['msg']})"
        ) from None

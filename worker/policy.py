"""The policy: which head decides, and where its thresholds are. A TOML file; its version is the hash of its content.

    name = "default"
    head = "linear"        # linear, knn or svm
    fake_from = 0.65       # score >= fake_from: fake
    real_below = 0.35      # score < real_below: real; between the two: review

The version hashes the parsed values, not the bytes: a comment or a blank line does not change who decided.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from worker.contract import PolicyRef, Score
from worker.errors import SettingsError


class Policy(BaseModel):
    """Thresholds on P(fake) of one head."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="default", min_length=1, max_length=64)
    head: Literal["linear", "knn", "svm"] = "linear"
    fake_from: Score = 0.65
    real_below: Score = 0.35

    @model_validator(mode="after")
    def _in_order(self) -> Policy:
        if self.real_below > self.fake_from:
            raise ValueError(f"real_below={self.real_below} must not be above fake_from={self.fake_from}")
        return self

    @property
    def ref(self) -> PolicyRef:
        """Name and version as they stand in a verdict."""
        content = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return PolicyRef(name=self.name, version=hashlib.sha256(content.encode()).hexdigest()[:12])


def load_policy(path: Path | None) -> Policy:
    """The policy in the file, or the default. Raises SettingsError that names the file and the field."""
    if path is None:
        return Policy()
    where = f"ASSAY_POLICY__PATH={path}"
    try:
        return Policy.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError([f"{where}: {error}"]) from None
    except ValidationError as error:
        raise SettingsError(
            [f"{where}: {'.'.join(map(str, item['loc'])) or 'policy'}: {item['msg']}" for item in error.errors()]
        ) from None

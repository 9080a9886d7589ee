"""Which images an encoder and its heads were fitted on, by hash: nobody may measure or calibrate on these.

`fit` notes them in `RUN/fitted_on.json` (with what chose the best epoch), `heads` adds its own and keeps all of them on
the card of the weights. Images of shards are hashed where there are at most HASHED (D3's validation and test splits are
far below); of larger sets they are counted, and every measurement says that they were not checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from train.data.records import Labelled, Source, photograph
from train.data.shards import ShardSource
from triton_models.files import replacing

FITTED_ON = "fitted_on.json"
HASHED = 100_000  # images of shards: a card of more would be larger than the weights, and hashing reads every byte
THREADS = 8
HASH_DIGITS = 16  # of a photograph's SHA-256, as `data equalise` names its cuts
_HASH = re.compile(r"[0-9a-f]{16,64}")


def fitted_on(images: Sequence[Labelled]) -> dict[str, Any]:
    """`photographs`: their hashes, each once; `generators`: names of what the fakes come from; `unlisted`: images
    without a hash.
    """
    named = [photograph_hash(image) for image in images]
    unnamed = [image for image, name in zip(images, named, strict=True) if name is None]
    if len(unnamed) <= HASHED:
        with ThreadPoolExecutor(THREADS) as pool:
            named += pool.map(_hash_of_bytes, unnamed)
        unnamed = []
    return {
        "photographs": sorted({name for name in named if name is not None}),
        "generators": sorted({image.generator for image in images if image.label == 1}),
        "unlisted": len(unnamed),
    }


def of_training(source: Source, validation: Sequence[Labelled]) -> dict[str, Any]:
    """What `fitted_on` says of all that a run is trained on and probed with; shards of more than HASHED images are
    counted without listing them, which at D3's size would take gigabytes.
    """
    if not isinstance(source, ShardSource) or source.images <= HASHED:
        return fitted_on([*source.labelled(), *validation])
    facts = fitted_on(validation)
    facts["unlisted"] += source.images
    facts["generators"] = sorted({*facts["generators"], *source.generators})
    return facts


def _hash_of_bytes(image: Labelled) -> str | None:
    """None where they cannot be read: then nothing was fitted on them either."""
    try:
        return hashlib.sha256(image.key.read()).hexdigest()[:HASH_DIGITS]
    except OSError:
        return None


def photograph_hash(image: Labelled) -> str | None:
    """The first 16 digits of the SHA-256 of the photograph that this is, or is a cut of; None where that is unknown."""
    name = photograph(image)
    return name[:HASH_DIGITS] if _HASH.fullmatch(name) else None


def save(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write them into a run's folder."""
    with replacing(folder / FITTED_ON) as partial:
        partial.write_text(json.dumps(facts, indent=1) + "\n")


def of_run(run: Path) -> dict[str, Any] | None:
    """What `save` wrote; None where the run has none."""
    path = run / FITTED_ON
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def read_card(weights: Path) -> dict[str, Any]:
    """The card of a weights folder; empty where there is none."""
    path = weights / "card.json"
    card: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return card


def hashes_on(card: Any) -> set[str]:
    """Every hash that stands anywhere on a card, cut to HASH_DIGITS."""
    return {text[:HASH_DIGITS] for text in _texts(card) if _HASH.fullmatch(text)}


def generators_on(card: Mapping[str, Any]) -> set[str] | None:
    """The generators that encoder and heads were fitted on; None where the card does not say."""
    parts = card.get("fitted_on")
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        return None
    if any("generators" not in part and isinstance(part.get("unlisted"), str) for part in parts.values()):
        return None
    return {name for part in parts.values() for name in part.get("generators", ())}


def unlisted_on(card: Mapping[str, Any]) -> int | str:
    """How many images were fitted on without a hash, or what the card says instead of a number."""
    parts = card.get("fitted_on")
    found = (
        [part.get("unlisted") or 0 for part in parts.values() if isinstance(part, dict)]
        if isinstance(parts, dict)
        else []
    )
    told = [str(entry) for entry in found if not isinstance(entry, int)]
    return ", ".join(told) if told else sum(entry for entry in found if isinstance(entry, int))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)

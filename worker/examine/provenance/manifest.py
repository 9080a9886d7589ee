"""C2PA manifests by c2pa-python: is the active one sound, and does its signer chain to the operator's trust list?

Only what lies in the file is read: a manifest elsewhere is never fetched, revocation is never asked for. A name in a
certificate is shown and never trusted. The library bounds nesting itself; a file of at most the worker's limit bounds
the rest (measured in docs/evidence.md).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from c2pa import C2paError, Context, Reader

from worker.evidence import CAPTURED_TYPES, EDITED_TYPES, GENERATED_TYPES, C2pa, C2paState
from worker.examine.provenance.xmp import last_segment

_MEDIA_TYPES = {
    "heic": "image/heic",
    **{name: f"image/{name}" for name in ("jpeg", "png", "webp", "tiff", "gif", "avif")},
}
# Sound and trusted, sound, not sound, as the library says it.
_STATES: Mapping[str, C2paState] = {"Trusted": "valid", "Valid": "untrusted", "Invalid": "invalid"}
# Where several actions name a source type, the strongest claim is the manifest's.
_STRENGTH = (GENERATED_TYPES, EDITED_TYPES, CAPTURED_TYPES)
MAX_ACTIONS = 256
_SHOWN_CHARS = 256


class ManifestReader:
    """Reads manifests against one trust list. Making it loads the library (a third of a second, once a process)."""

    def __init__(self, anchors_pem: str | None) -> None:
        """`anchors_pem`: the authorities to trust, as `trust.load_anchors` read them; None trusts nobody."""
        settings: dict[str, Any] = {
            "verify": {"verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
            # Not needed to judge, and costly.
            "builder": {"thumbnail": {"enabled": False}},
        }
        if anchors_pem:
            settings["trust"] = {"trust_anchors": anchors_pem}
        self._context = Context.from_dict(settings)

    def read(self, data: bytes, image_format: str) -> C2pa:
        """What the manifest inside `data` says; every field None where there is none."""
        try:
            with Reader(_MEDIA_TYPES[image_format], io.BytesIO(data), context=self._context) as reader:
                document = json.loads(reader.json())
        except C2paError.ManifestNotFound:
            return C2pa()
        except C2paError as error:
            # Said only of a manifest that is elsewhere: the file itself has none.
            return C2pa() if str(error).startswith("Remote:") else C2pa(state="invalid")
        except ValueError:
            return C2pa(state="invalid")
        return _summary(document)


def _summary(document: Any) -> C2pa:
    manifests = document.get("manifests") or {}
    active = manifests.get(document.get("active_manifest"))
    if not isinstance(active, dict):
        return C2pa(state="invalid")
    generator: Mapping[str, Any] = next(iter(active.get("claim_generator_info") or []), {})
    name = " ".join(str(generator[key]) for key in ("name", "version") if generator.get(key))
    return C2pa(
        state=_STATES.get(str(document.get("validation_state")), "invalid"),
        issuer=_shown((active.get("signature_info") or {}).get("issuer")),
        claim_generator=_shown(name or active.get("claim_generator")),
        source_type=_shown(_strongest(_source_types(active))),
    )


def _source_types(manifest: Mapping[str, Any]) -> Iterator[str]:
    """The digital source types that the actions name."""
    for assertion in manifest.get("assertions") or []:
        if not str(assertion.get("label")).startswith("c2pa.actions"):
            continue
        actions = (assertion.get("data") or {}).get("actions") or []
        for action in actions[:MAX_ACTIONS]:
            value = action.get("digitalSourceType")
            if isinstance(value, str):
                yield last_segment(value)


def _strongest(source_types: Iterator[str]) -> str | None:
    found = list(source_types)
    for group in _STRENGTH:
        for source_type in found:
            if source_type in group:
                return source_type
    return found[0] if found else None


def _shown(value: Any) -> str | None:
    text = "".join(char for char in str(value) if char.isprintable())[:_SHOWN_CHARS] if value else ""
    return text or None

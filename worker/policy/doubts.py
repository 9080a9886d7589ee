"""What a rule may say and hardly means: a comparison with a value that its fact never has.

The type checker takes `image.format == "jpg"`: both are texts. The rule would never hold, and nobody would be told.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from typing import get_args

from worker.contract import FORMATS
from worker.evidence import CAPTURED_TYPES, EDITED_TYPES, GENERATED_TYPES, C2paState, Declared, Watermark
from worker.examine.provenance.tools import SLUGS
from worker.policy.syntax import Literals, Node

_SOURCE_TYPES = GENERATED_TYPES | EDITED_TYPES | CAPTURED_TYPES
# Facts whose texts are known. Of a source type a file may have others, but hardly one so near to these.
_CLOSED: dict[str, tuple[frozenset[str], bool]] = {
    "image.format": (frozenset(FORMATS), True),
    "evidence.declared": (frozenset(get_args(Declared)), True),
    "evidence.c2pa.state": (frozenset(get_args(C2paState)), True),
    "evidence.c2pa.source_type": (_SOURCE_TYPES, False),
    "evidence.metadata.tool": (frozenset(SLUGS), True),
    "evidence.metadata.source_type": (_SOURCE_TYPES, False),
    "evidence.watermark": (frozenset(get_args(Watermark)), True),
}
_EQUAL = ("_==_", "_!=_", "@in")
_ORDER = ("_<_", "_<=_", "_>_", "_>=_")


def doubts(tree: Node) -> tuple[tuple[int, str], ...]:
    """(where, what) of each, in the order of the text. `tree`: of a checked expression."""
    found = [(node.at, doubt) for node in tree.walk() if node.kind == "call" for doubt in _of(node)]
    return tuple(sorted(found))


def _of(call: Node) -> Iterator[str]:
    if call.name not in (*_EQUAL, *_ORDER):
        return
    for fact, other in (call.children, call.children[::-1]):
        path = _path(fact)
        constants = [part.value for part in other.walk()] if other.kind in ("constant", "list") else []
        if path in _CLOSED and call.name in _EQUAL:
            yield from (_never(path, value) for value in constants if _is_odd(path, value))
        if path.startswith("scores.") or (path.startswith("detectors.") and path.count(".") == 2):
            numbers = [value for value in constants if isinstance(value, int | float) and not isinstance(value, bool)]
            yield from (f"{path} is from 0 to 1, never {value:g}" for value in numbers if not 0 <= value <= 1)


def _is_odd(path: str, value: Literals) -> bool:
    known, is_all = _CLOSED[path]
    return isinstance(value, str) and value not in known and (is_all or bool(_nearest(value, known)))


def _never(path: str, value: Literals) -> str:
    known = _CLOSED[path][0]
    nearest = _nearest(str(value), known)
    hint = f"did you mean {nearest!r}?" if nearest else f"there are {', '.join(sorted(known))}"
    return f"{path} is never {value!r}; {hint}"


@functools.cache
def _nearest(value: str, known: frozenset[str]) -> str:
    by_lower = {one.lower(): one for one in sorted(known)}
    found = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else ""


def _path(node: Node) -> str:
    """`image.format` of a fact; empty for anything else."""
    if node.kind == "name":
        return node.name
    owner = _path(node.children[0]) if node.kind == "field" else ""
    return f"{owner}.{node.name}" if owner else ""

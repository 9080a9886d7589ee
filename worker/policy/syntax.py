"""The syntax tree of a checked CEL expression: names, fields and macros with where each stands in the text.

The library compiles and runs expressions but hands out their tree only as a serialised `cel.expr.CheckedExpr`. What a
rule reads, what it may cost and which name is unknown is found on this tree (field numbers: cel-spec,
proto/cel/expr/syntax.proto and checked.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "name", "field", "has", "call", "list", "map", "macro"]
Literals = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `at`: code points from the beginning of the text to it; of a field or an operator, to its sign.

    `name` is the name, the field, the function or the variable that a macro binds; `value` that of a constant;
    `overloads` those of a function that the argument's types leave.
    """

    kind: Kind
    at: int
    name: str = ""
    value: Literals = None
    children: tuple[Node, ...] = ()
    overloads: tuple[str, ...] = ()

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in the order of the text."""
        yield self
        for child in self.children:
            yield from child.walk()


def read_checked(serialised: bytes) -> Node:
    """The tree of what `Expression.serialize` gave for a type-checked expression."""
    checked = _last(serialised, 2)  # the value of a google.protobuf.Any
    source_info, expression = _last(checked, 5), _last(checked, 4)
    entries = [value for number, value in _fields(source_info) if number == 4 and isinstance(value, bytes)]
    references = [value for number, value in _fields(checked) if number == 2 and isinstance(value, bytes)]
    return _node(
        expression,
        {_number(entry, 1): _number(entry, 2) for entry in entries},
        {_number(entry, 1): _overloads(_last(entry, 2)) for entry in references},
    )


def _overloads(reference: bytes) -> tuple[str, ...]:
    return tuple(value.decode() for number, value in _fields(reference) if number == 3 and isinstance(value, bytes))


def _node(data: bytes, positions: dict[int, int], overloads: dict[int, tuple[str, ...]]) -> Node:
    """Raises ValueError for a kind that rules do not have."""
    fields = dict(_fields(data))
    identity = _number(data, 2)
    at = positions.get(identity, 0)
    kind = next((number for number in range(3, 10) if number in fields), 0)
    body = fields.get(kind, b"")
    assert isinstance(body, bytes)

    def child(number: int) -> tuple[Node, ...]:
        parts = (value for found, value in _fields(body) if found == number)
        return tuple(_node(part, positions, overloads) for part in parts if isinstance(part, bytes))

    if kind == 3:
        return Node("constant", at, value=_constant(body))
    if kind == 4:
        return Node("name", at, _text(body, 1))
    if kind == 5:
        return Node("has" if _number(body, 3) else "field", at, _text(body, 2), children=child(1))
    if kind == 6:
        return Node("call", at, _text(body, 2), None, child(1) + child(3), overloads.get(identity, ()))
    if kind == 7:
        return Node("list", at, children=child(1))
    if kind == 8 and not _text(body, 1):
        entries = [value for number, value in _fields(body) if number == 2 and isinstance(value, bytes)]
        sides = [_last(entry, number) for entry in entries for number in (3, 4)]
        return Node("map", at, children=tuple(_node(side, positions, overloads) for side in sides))
    if kind == 9:
        # The range, then the steps of the loop; the accumulator's name is the library's own.
        return Node("macro", at, _text(body, 1), children=child(2) + child(4) + child(5) + child(6) + child(7))
    raise ValueError("a rule makes no messages")


def _constant(data: bytes) -> Literals:
    number, value = next(iter(_fields(data)), (1, 0))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if number == 5:
        return float(struct.unpack("<d", value.to_bytes(8, "little"))[0])
    if number == 3:
        return value - 2**64 if value >= 2**63 else value
    return {1: None, 2: bool(value)}.get(number, value)


def _text(data: bytes, number: int) -> str:
    return _last(data, number).decode()


def _last(data: bytes, number: int) -> bytes:
    found = b""
    for field, value in _fields(data):
        if field == number and isinstance(value, bytes):
            found = value
    return found


def _number(data: bytes, number: int) -> int:
    return next((value for field, value in _fields(data) if field == number and isinstance(value, int)), 0)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message on protobuf's wire: bytes, or an integer (a double as its 64 bits)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif wire_type == 1:
            yield tag >> 3, int.from_bytes(data[at : at + 8], "little")
            at += 8
        elif wire_type == 2:
            size, at = _varint(data, at)
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire_type} is not of this message")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7

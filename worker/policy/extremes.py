"""`min` and `max` in a rule -> functions of the library's own, for evaluation.

Rules say `min(…)` and `max(…)`, which are no functions of CEL; the library's extension has `math.least(…)` and
`math.greatest(…)`. A function in Python would do as well, but cel-expr-python 0.1.3 keeps about 100 bytes of each call
of one for good, which is gigabytes a day in a worker.
"""

from __future__ import annotations

import re

from worker.policy.syntax import Node

FUNCTIONS = {"min": "math.least", "max": "math.greatest"}
_INTEGERS = re.compile(r"(?:min|max)(?:_int)+")
# Texts and comments, which may hold parentheses, and parentheses themselves.
_TOKEN = re.compile(
    r'//[^\n]*|[rR]"""[\s\S]*?"""|[rR]\'\'\'[\s\S]*?\'\'\'|[rR]"[^"\n]*"|[rR]\'[^\'\n]*\''
    r'|"""(?:\\[\s\S]|[^\\])*?"""|\'\'\'(?:\\[\s\S]|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|[()]'
)


def replaced(text: str, tree: Node) -> str:
    """`text`, whose checked tree is `tree`, with every call of `min` and `max` as one of the library's functions.

    As the checker has it, the value is an integer only where all arguments are: of others it is made a double.
    """
    changes: list[tuple[int, int, str]] = []  # (from, to, instead)
    # What a macro repeats stands in the text once.
    calls = {node.at: node for node in tree.walk() if node.kind == "call" and node.name in FUNCTIONS}
    for at, node in calls.items():
        begin = text.rfind(node.name, 0, at)
        own = FUNCTIONS[node.name]
        if any(_INTEGERS.fullmatch(overload) for overload in node.overloads):
            changes.append((begin, begin + len(node.name), own))
        else:
            end = _closing(text, at)
            changes += [(begin, begin + len(node.name), f"double({own}"), (end, end, ")")]
    for begin, end, instead in sorted(changes, reverse=True):
        text = text[:begin] + instead + text[end:]
    return text


def _closing(text: str, opening: int) -> int:
    """The place behind the parenthesis that closes the one at `opening`."""
    depth = 0
    for token in _TOKEN.finditer(text, opening):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0 and token[0] == ")":
            return token.end()
    raise ValueError("a parenthesis is not closed")

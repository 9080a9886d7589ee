"""What `make mutate` makes of mutmut's words; the mutants themselves take too long for `make test`."""

from __future__ import annotations

from tests.mutation import ROOT, Change, change, explained, verdict

SHOWN = """# worker.offsets.xǁOffsetTrackerǁfinish__mutmut_7: survived
--- worker/offsets.py
+++ worker/offsets.py
@@ -1,3 +1,3 @@
             state = self._partitions.get(partition)
-            if state is None or state.epoch != epoch:
+            if state is None and state.epoch != epoch:
                 return False
"""
FOUND = Change(
    "worker.offsets.OffsetTracker.finish",
    ("- if state is None or state.epoch != epoch:", "+ if state is None and state.epoch != epoch:"),
)


def test_a_mutant_is_known_by_its_function_and_lines() -> None:
    """Not by its number, which changes with the code above it."""
    assert change("worker.offsets.xǁOffsetTrackerǁfinish__mutmut_7", SHOWN) == FOUND
    assert change("worker.retry.x_backoff_s__mutmut_12", "-a\n+b\n") == Change("worker.retry.backoff_s", ("- a", "+ b"))


def test_what_is_neither_noticed_nor_explained_is_told() -> None:
    """So is an explanation of what is noticed, once all have been tried."""
    assert verdict([FOUND], {FOUND: "because"}, whole=True) == []
    (told,) = verdict([FOUND], {}, whole=True)
    assert "finish" in told and "+ if state is None and" in told
    (gone,) = verdict([], {FOUND: "because"}, whole=True)
    assert "mutants.toml" in gone
    assert verdict([], {FOUND: "because"}, whole=False) == []


def test_an_explanation_is_of_code_that_is_there() -> None:
    """With a reason, and what the mutant takes out stands in that function's module."""
    for entry, why in explained().items():
        assert why.strip(), entry
        parts = entry.function.split(".")
        path = next(
            found
            for length in range(len(parts) - 1, 0, -1)
            if (found := ROOT.joinpath(*parts[:length]).with_suffix(".py")).is_file()
        )
        code = path.read_text(encoding="utf-8")
        assert f"def {parts[-1]}(" in code, entry
        for line in entry.lines:
            assert line.startswith("+ ") or line.removeprefix("- ") in code, entry

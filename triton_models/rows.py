"""The lines of what `verify` found, and what each may differ by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """`score`, `embedding` (in standard deviations of the embeddings): largest differences; labels may change within
    `margin` of 0.5.
    """

    score: float
    embedding: float
    margin: float


# Float32 forms of one model are up to 10 times `reference.rounding` from float64: that is one rounding of each weight,
# they round at each operation.
ROUNDINGS = 16
TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-4, 1e-4),
    "fp16": Tolerance(0.01, 0.01, 0.05),
    "bf16": Tolerance(0.01, 0.08, 0.05),
}


@dataclass(frozen=True)
class Row:
    """One form of the model against the reference. `failure`: why it gave nothing; `skipped`: why it was not asked.

    `allowed`: what scores of a quantised graph may differ by on another machine.
    `embedding` is that of the image furthest past what it may be, or nearest to it; `rounding` what float32's rounding
    explains there.
    """

    name: str
    embedding: float | None = None
    score: float | None = None
    labels: int = 0
    failure: str = ""
    skipped: str = ""
    rounding: float = 0.0
    allowed: float = 0.0

    def passes(self, tolerance: Tolerance) -> bool:
        """Within the tolerance, or not asked."""
        return not self.past(tolerance)

    def past(self, tolerance: Tolerance) -> str:
        """What is past the tolerance, in words; empty where nothing is, or it was not asked."""
        if self.skipped or self.failure:
            return self.failure
        limits = {"embedding": max(tolerance.embedding, self.rounding), "score": max(tolerance.score, self.allowed)}
        differences = {"embedding": self.embedding, "score": self.score}
        # Written so that NaN does not pass.
        found = [
            f"{name} differs by {value:.1e}, at most {limits[name]:.1e}"
            for name, value in differences.items()
            if value is not None and not value <= limits[name]
        ]
        return ", ".join(found + ([f"labels changed: {self.labels}"] if self.labels else []))

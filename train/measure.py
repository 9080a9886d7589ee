"""What `evaluate` measures: a weights folder, or a backbone with heads fitted on images that are given; and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from train.data.images import DataError
from train.data.open import both_classes, open_source
from train.detector_scores import open_detector
from train.embed import Embedder, Passes
from train.evaluate import UNTRAINED, Options, evaluate
from train.fit_heads import fit_heads
from train.fitted import fitted_on, generators_on, hashes_on, read_card, unlisted_on
from train.heads import Heads, Scorer
from train.model import Backbone, code_backbone, timm_backbone, trained_backbone
from train.paper import about_run
from train.recipe import HeadFit
from triton_models import weights


@dataclass(frozen=True)
class Subject:
    """Either `weights`, a folder; or `detector`, a folder (and onnx:FILE as `backbone` where it lacks its graph); or
    `backbone` (timm:NAME, `pretrained` or not, or run:FOLDER with a trained encoder) with heads fitted on `fit_on`.
    """

    weights: Path | None = None
    backbone: str | None = None
    fit_on: Path | None = None
    pretrained: bool = True
    detector: Path | None = None

    def check(self) -> None:
        """Raises DataError unless it is one of the three."""
        if self.detector is not None:
            if self.weights is not None or self.fit_on is not None:
                raise DataError("--detector DIR has heads of its own: leave --weights and --fit-on away")
            return
        if (self.weights is None) == (self.backbone is None):
            raise DataError("give either --weights DIR, --detector DIR or --backbone timm:NAME (run:FOLDER)")
        if self.backbone is not None and (self.fit_on is None or not self.backbone.startswith(("timm:", "run:"))):
            raise DataError(
                "--backbone is timm:NAME or run:FOLDER and needs --fit-on DIR, on which its heads are fitted"
            )


def measure(
    subject: Subject,
    data: Path,
    out: Path,
    options: Options,
    *,
    say: Callable[[str], object] = str,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate `subject` on the images in `data`, into the folder `out`; returns what results.json holds.

    Everything that the caller may have got wrong is told before the work of hours: raises DataError, WeightsError.
    """
    subject.check()
    if not next(path for path in (out, *out.absolute().parents) if path.exists()).is_dir():
        raise DataError(f"--out {out} is no folder, or lies in none: name a folder")
    body: Embedder
    heads: Scorer | None
    if folder := subject.weights or subject.detector:
        card = read_card(folder)
        if subject.detector is not None:
            body, heads = open_detector(folder, subject.backbone)
            about = {"detector": heads.loaded.spec.name, "model version": heads.loaded.version, "folder": str(folder)}
        else:
            body, heads = code_backbone(folder), Heads.load(folder)
            about = {"weights": str(folder), "model version": weights.load(folder).version}
            about |= about_run(str(card.get("encoder", "")))
        known = generators_on(card)
        trained_on = None if known is None else frozenset(known)
        options = replace(
            options, fitted_hashes=frozenset(hashes_on(card)), trained_on=trained_on, not_checked=unlisted_on(card)
        )
    else:
        body, heads, about = _backbone(subject, say), None, {"heads fitted on": str(subject.fit_on)}
        if str(subject.backbone).startswith("timm:") and not subject.pretrained:
            about[UNTRAINED] = "yes"
    source = open_source(data, console=console)
    images = both_classes(source, data)
    if heads is None:
        assert subject.fit_on is not None  # see Subject.check
        known_images = both_classes(open_source(subject.fit_on, console=console), subject.fit_on)
        heads, _ = fit_heads(Passes(body, known_images, out), known_images, HeadFit(), say=say, console=console)
        facts = fitted_on(known_images)
        names, hashes = frozenset(facts["generators"]), frozenset(facts["photographs"])
        options = replace(options, fitted_hashes=hashes, trained_on=names, not_checked=facts["unlisted"])
    about["data"] = str(data)
    try:
        return evaluate(body, heads, images, out, options, left_out=source.left_out, about=about, console=console)
    except ValueError as error:
        raise DataError(str(error)) from error


def _backbone(subject: Subject, say: Callable[[str], object]) -> Backbone:
    if str(subject.backbone).startswith("run:"):
        return trained_backbone(str(subject.backbone).removeprefix("run:"))
    pretrained = subject.pretrained
    say(
        f"loading {subject.backbone}"
        + (" with its weights (from the hub unless they are here)" if pretrained else ", untrained")
    )
    return timm_backbone(str(subject.backbone).removeprefix("timm:"), pretrained=pretrained)

"""A results folder, a run and a data set as training and evaluation leave them, from numbers drawn here: quick to make,
rich enough to look at.

python -m tests.browser.sample FOLDER     # also writes FOLDER/report/report.html
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

from train.data.folder import scan_folder
from train.data.records import Key, Labelled
from train.data.synthetic import write_synthetic_folder
from train.embed import Embedded
from train.evaluate import EMBEDDINGS, RESULTS, Options, finite, protocol, rows
from train.recipe import load_recipe, recipe_to_toml
from train.report import write_report
from train.robustness import tier, tiers
from train.temporal import read_releases, table
from triton_models.weights import FAKE, HEADS, REAL

GENERATORS = {
    "gen_0": 2.2,
    "gen_1": 1.9,
    "gen_2": 1.6,
    "gen_3": 1.3,
    "sdxl-juggernaut": 0.9,
    "flux-1-pro": 0.4,
    "midjourney-v5": 0.7,
    "stylegan3": 0.1,
}
TRAINED_ON = frozenset(name for name in GENERATORS if name.startswith("gen_"))
GROUPS = ("augm", "no_augm")


def drawn(rng: np.random.Generator, strength: float) -> tuple[list[Labelled], np.ndarray, np.ndarray]:
    """Images of two groups with (embeddings [N, 192], scores [N, 3]); a generator's fakes are as far from the reals as
    it is easy.
    """
    images, embeddings, logits = [], [], []
    for group in GROUPS:
        for generator, distance in {"real": 0.0, **GENERATORS}.items():
            for index in range(120 if generator == "real" else 40):
                label = REAL if generator == "real" else FAKE
                shift = distance * strength * (0.7 if group == "augm" else 1)
                images.append(Labelled(f"{group}-{generator}-{index}", Key("drawn"), label, generator, group))
                direction = np.zeros(192)
                direction[:2] = shift, list(GENERATORS).index(generator) * 0.7 if label else 0
                embeddings.append(rng.normal(size=192) * 0.3 + direction)
                logits.append(
                    [rng.normal() + 2 * shift - 1, rng.normal() + shift - 0.5, rng.normal() + 0.3 * shift - 1.5]
                )
    return images, np.array(embeddings, np.float32), 1 / (1 + np.exp(-np.array(logits)))


def write_sample(folder: Path) -> Path:
    """Write results/, run/ and data/ below `folder`, and the report of them; returns the page."""
    rng = np.random.default_rng(0)
    images, embeddings, scores = drawn(rng, 1)
    embedded = Embedded(images, embeddings, [])
    results = {
        "backbone": "code:sample",
        "about": {"weights": "weights/sample", "model version": "0123456789ab", "data": "d3_test"},
        "calibration": None,
        "images": {
            "real": int((embedded.labels == REAL).sum()),
            "fake": int((embedded.labels == FAKE).sum()),
            "unreadable": 1,
        },
        "unreadable": ["d3_test/augm/real/broken.jpg: not an image"],
        "intervals": "95 %, percentile bootstrap, 100 resamples within each class",
        "protocol": protocol(embedded, scores),
        "rows": rows(embedded, scores, Options(resamples=100, trained_on=TRAINED_ON)),
        "robustness": {},
    }
    own = np.arange(len(images))
    for place, (kind, strength, _) in enumerate(tiers(images)):
        _, _, weaker = drawn(rng, 1 / (1 + 0.1 * (place % 5)))
        by_head = {
            head: tier(embedded, weaker[:, index], own, (embedded, scores[:, index]))
            for index, head in enumerate(HEADS)
        }
        results["robustness"].setdefault(kind, {})[strength] = by_head
    generators = np.array([image.generator for image in images], dtype=np.str_)
    results["temporal"] = table(embedded.labels, scores, generators, own, read_releases())
    (folder / "results").mkdir(parents=True)
    (folder / "results" / RESULTS).write_text(json.dumps(finite(results)))
    np.savez(
        folder / "results" / EMBEDDINGS,
        embeddings=embeddings,
        labels=embedded.labels,
        generators=generators,
        scores=scores,
    )

    (folder / "run").mkdir()
    (folder / "run" / "recipe.toml").write_text(
        recipe_to_toml(load_recipe("smoke", ['name="<script>alert(1)</script>"']))
    )
    (folder / "run" / "environment.json").write_text(
        json.dumps({"python": "3.11", "machine": "x" * 120, "git": {"commit": "f" * 40}}, indent=2)
    )
    lines = []
    for step in range(1, 201):
        terms = {
            name: 1.4 + 1.2 * math.exp(-step / 60) + 0.05 * float(rng.normal())
            for name in ("global_real", "global_fake")
        }
        terms |= {
            name: 1.0 + 1.6 * math.exp(-step / 40) + 0.05 * float(rng.normal())
            for name in ("multiscale_real", "multiscale_fake")
        }
        lines.append(
            {
                "kind": "step",
                "step": step,
                "lr": 1e-3 * (1 - step / 200),
                **terms,
                "total": sum(terms.values()) / 2,
                "images_per_s": 9.0,
            }
        )
        if step % 20 == 0:
            lines.append({"kind": "probe", "step": step, "auc": 0.9 - 0.4 * math.exp(-step / 50), "best_auc": 0.9})
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_synthetic_folder(folder / "data", 8, size=96)
    data = scan_folder(folder / "data")[0].images
    return write_report(folder / "results", folder / "report", run=folder / "run", data=data)


if __name__ == "__main__":
    print(write_sample(Path(sys.argv[1])))

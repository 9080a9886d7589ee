"""An explanation as a folder: a page that opens without a network, the crop, the map over it, and the JSON.

Red speaks for fake, blue for real, as strong as the strongest part of this image: two maps are not to be compared.
"""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
from PIL import Image

from worker.crop import Pixels
from worker.explain.occlusion import Attribution
from worker.explain.panel import rows
from worker.explain.report import Explained, Explanation

_SCALE = 2
_STRENGTH = 0.6
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c;
       background: #fff; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; } th { text-align: left; vertical-align: top; padding: .3rem 1.5rem .3rem 0; }
td { padding: .3rem 0; white-space: pre-line; overflow-wrap: anywhere; }
figure { display: inline-block; margin: 1rem 1rem 1rem 0; } img { max-width: 100%; display: block; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #161616; } }
"""


def write(explained: Explained, folder: Path) -> list[Path]:
    """The files written. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "explanation.json", folder / "index.html"]
    written[0].write_text(explained.explanation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if explained.pixels is not None and explained.attribution is not None:
        pictures = {
            "crop.png": _enlarged(explained.pixels),
            "map.png": overlay(explained.pixels, explained.attribution),
        }
        for name, picture in pictures.items():
            picture.save(folder / name)
            written.append(folder / name)
    written[1].write_text(_page(explained.explanation, [path.name for path in written[2:]]), encoding="utf-8")
    return written


def overlay(pixels: Pixels, attribution: Attribution) -> Image.Image:
    """The crop in grey, red where it speaks for fake, blue where for real."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"), np.float64)
    strength = attribution.weights / (np.abs(attribution.weights).max() or 1.0)
    colour = np.where(strength[..., None] >= 0, np.array([220.0, 30, 30]), np.array([30.0, 60, 220]))
    share = _STRENGTH * np.abs(strength)[..., None]
    return _enlarged((grey * (1 - share) + colour * share).astype(np.uint8))


def _enlarged(pixels: Pixels) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize((width * _SCALE, height * _SCALE), Image.Resampling.NEAREST)


def _page(explanation: Explanation, pictures: list[str]) -> str:
    captions = {"crop.png": "what the model looked at", "map.png": "red speaks for fake, blue for real"}
    figures = "".join(
        f'<figure><img src="{name}" alt="{captions[name]}"><figcaption>{captions[name]}</figcaption></figure>'
        for name in pictures
    )
    lines = [(name, found[:1] if name == "map" else found) for name, found in rows(explanation)]
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(chr(10).join(found))}</td></tr>'
        for name, found in lines
    )
    title = html.escape(explanation.image_id)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self' file:; "
        "style-src 'unsafe-inline'\">"
        f"<title>Why: {title}</title><style>{_STYLE}</style></head><body><h1>{title}: "
        f"{explanation.decision}</h1>{figures}<table>{body}</table></body></html>\n"
    )

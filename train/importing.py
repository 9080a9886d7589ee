"""The command of `train.main` that takes published detectors in."""
# ruff: noqa: PLC0415 - torch takes seconds to import, and `--help` and wrong usage should not

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from train.terminal import clear_errors, out_console, say

importing_app = typer.Typer()


@importing_app.command("import-detector")
def import_detector(
    kind: Annotated[str, typer.Argument(help="cnndetection, univfd or community-forensics.")],
    source: Annotated[str, typer.Argument(help="The published file, or hf://OWNER/NAME/FILE.")],
    out: Annotated[Path, typer.Argument(help="The detector's folder to make.")],
    backbone: Annotated[
        str, typer.Option(help="Of univfd: CLIP's image tower in timm's names, FILE or hf://…; else from timm's hub.")
    ] = "",
) -> None:
    """A published detector with its own head and preprocessing as a folder to measure and to serve.

    Example: `import-detector cnndetection blur_jpg_prob0.5.pth detectors/cnndetection`
    """
    from train.published import import_detector as take_in

    with clear_errors():
        card = take_in(kind, source, out, backbone)
    out_console.print_json(json.dumps(card))
    say(f"next: python -m train.main evaluate --detector {out} --data DIR --out results/{out.name}")

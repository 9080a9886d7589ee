"""`explain`: why an image was decided as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.command import AsJson, Config, command
from worker.cli.settings import load_settings
from worker.terminal import err, out, print_json


@command(
    examples="""
    python -m worker explain real/mflux-dog-photos/5f0c.jpg
    python -m worker explain --file photo.jpg --out why/
    python -m worker explain --file photo.jpg --detector clip
    """
)
def explain(
    image_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Image id.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="By a file with the same bytes.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write a page with its pictures there.")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Whose map: `code` or one beside it. By default that of the score that decided."
        ),
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Why a stored verdict is what it is: rule, margins, evidence, neighbours, and a map; exit 4 if there is none."""
    from worker.contract import Verdict
    from worker.errors import SettingsError
    from worker.explain import page, panel, report
    from worker.policy import load_policy
    from worker.query import stored_verdict
    from worker.settings import variable
    from worker.stages.policy_watch import also_decides

    settings = load_settings(config)
    document = stored_verdict(settings.redis, image_id=image_id, sha256=None, file=file)
    policy = load_policy(settings.policy.path, variable("policy", "path"), also_decides(settings))
    data = file.read_bytes() if file else None
    explained = report.explain(settings, policy, Verdict.model_validate_json(document), data, detector)
    if folder is not None:
        try:
            written = page.write(explained, folder)
        except OSError as error:
            raise SettingsError([f"--out {folder}: {error.strerror or error}"]) from None
        err.say(f"wrote {', '.join(str(path) for path in written)}")
    if as_json:
        print_json(explained.explanation.model_dump_json())
    else:
        out.print(panel.panel(explained.explanation))

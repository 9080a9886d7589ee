"""The commands `train.main data …`: look at data, check a folder, build D3's shards, equalise. Each calls a module
beside this one.

python -m train.main data inspect images/
"""
# ruff: noqa: PLC0415 - see train/main.py

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from train.terminal import GOES_ON, clear_errors, console, out_console, require_new, say

data_app = typer.Typer(help="Prepare and look at data.", no_args_is_help=True)


@data_app.command("inspect")
def data_inspect(
    folder: Path,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet here (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Counts, sizes and formats, and how strongly each tells the label. Example: `data inspect images/ --sheet
    contact.png`
    """
    from train.data.inspect import contact_sheet, gather, summary
    from train.data.open import open_source

    with clear_errors():
        source = open_source(folder, console=console)
        images = source.labelled()
        facts = summary(gather(images, console)) | {"left_out": source.problems}
        if sheet is not None:
            facts["contact_sheet"] = contact_sheet(images, sheet)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    table = Table("property", "tells the label (Cramer's V)", "values: real / fake")
    for name, strength in facts["label_given_away_by"].items():
        values = sorted(facts["counts"][name].items(), key=lambda item: -sum(item[1].values()))[:6]
        table.add_row(
            name,
            f"{strength:.2f}",
            ", ".join(f"{value}: {row.get('real', 0)}/{row.get('fake', 0)}" for value, row in values),
        )
    out_console.print(table)
    for warning in facts["warnings"]:
        out_console.print(f"[yellow]{warning}[/yellow]")


@data_app.command("d3")
def data_d3(
    source: Annotated[str, typer.Argument(help="hf://elsaEU/ELSA_D3, or a parquet file or folder in its schema.")],
    out: Path,
    split: Annotated[str, typer.Option(help="Split on the hub.")] = "train",
    records: Annotated[int, typer.Option(help="Records per shard.", min=1)] = 5000,
    limit: Annotated[int | None, typer.Option(help="Stop after so many rows.", min=1)] = None,
    part: Annotated[
        str, typer.Option(help="I/N: the I-th of N parts, into OUT/part-I-of-N; for several machines at once.")
    ] = "1/1",
    concurrency: Annotated[int, typer.Option(help="Downloads at a time.", min=1)] = 64,
    timeout_s: Annotated[float, typer.Option(help="For one try of one download.")] = 20.0,
    give_up_after: Annotated[
        int, typer.Option(help="Downloads in a row without an answer: the network is down.", min=1)
    ] = 50,
    retry_failed: Annotated[
        bool, typer.Option(help="First try again what failed in the shards written, but for dead links.")
    ] = False,
) -> None:
    """D3 rows + their real images -> WebDataset shards; a stopped run goes on where it was.

    Example: `data d3 hf://elsaEU/ELSA_D3 shards/ --split validation`
    """
    from train.data.d3 import DownloadLimits, build_shards
    from train.data.download import may_pass

    with clear_errors(when_stopped=GOES_ON):
        limits = DownloadLimits(concurrency=concurrency, timeout_s=timeout_s, max_unanswered=give_up_after)
        number, parts = _part(part)
        manifest = build_shards(
            source,
            out / f"part-{number:03d}-of-{parts:03d}" if parts > 1 else out,
            part=(number, parts),
            split=split,
            records_per_shard=records,
            limit=limit,
            limits=limits,
            retry_failed=retry_failed,
            console=console,
        )
    out_console.print_json(
        json.dumps({key: value for key, value in manifest.items() if key not in ("shards", "positions")})
    )
    if passing := sum(count for reason, count in manifest["failures"].items() if may_pass(reason)):
        say(f"{passing} links did not answer; the same command with --retry-failed tries them again")
    say(f"next: python -m train.main fit --recipe paper --set data.source={out}")


def _part(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`. Raises DataError."""
    from train.data.images import DataError

    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts) <= 999):
        raise DataError(f"--part {text}: expected I/N with 1 <= I <= N <= 999, say 3/16")
    return int(number), int(parts)


@data_app.command("folder")
def data_folder(
    folder: Path,
    min_side_px: Annotated[int, typer.Option(help="A shorter side below this is `tiny`.", min=1)] = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON only, every file that is left out in it.")
    ] = False,
) -> None:
    """Check a folder (real/..., fake/GENERATOR/...): every file decoded, what is left out named. Example: `data folder
    images/`
    """
    from dataclasses import asdict

    from train.data.folder import scan_folder
    from train.data.open import open_source

    with clear_errors():
        if as_json:
            source, problems = scan_folder(folder, min_side_px, console=console)
            counts = {
                "real": sum(image.label == 0 for image in source.images),
                "fake": sum(image.label == 1 for image in source.images),
            }
            sys.stdout.write(
                json.dumps({"images": counts, "left_out": [asdict(problem) for problem in problems]}, indent=2) + "\n"
            )
        else:
            open_source(folder, min_side_px=min_side_px, console=out_console)


@data_app.command("equalise")
def data_equalise(
    folder: Path,
    out: Path,
    held_out: Annotated[float, typer.Option(help="Part kept aside in original bytes.", min=0, max=0.9)] = 0.25,
    validation: Annotated[
        float, typer.Option(help="Part of the rest for validation, equalised too.", min=0, max=0.9)
    ] = 0.0,
    max_per_generator: Annotated[
        int, typer.Option(help="At most so many training images of one source or generator.", min=1)
    ] = 90,
    unseen: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Keep this source or generator aside as a whole; may be repeated."),
    ] = None,
    copies: Annotated[int, typer.Option(help="Cuts of each training image.", min=1)] = 1,
    side_px: Annotated[
        tuple[int, int], typer.Option(help="A cut's side is drawn from these two, the second not included.", min=32)
    ] = (224, 353),
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """A copy in which format, size and compression do not tell the label; a stopped run goes on. Example: `data
    equalise images/ equal/`
    """
    from train.data.equalise import UNFINISHED, equalise_folder
    from train.data.images import DataError
    from train.data.open import open_source
    from train.data.shards import shards_in

    with clear_errors(when_stopped=GOES_ON):
        if side_px[0] >= side_px[1]:
            raise DataError(
                f"--side-px {side_px[0]} {side_px[1]}: the first has to be below the second, which is not included"
            )
        if shards_in(folder):
            raise DataError(f"{folder} holds shards: equalise takes a folder of images (real/…, fake/GENERATOR/…)")
        if not (out / UNFINISHED).exists():
            require_new(out)
        images = open_source(folder, min_side_px=32, console=console).labelled()
        counts = equalise_folder(
            images,
            out,
            held_out_fraction=held_out,
            validation_fraction=validation,
            max_per_generator=max_per_generator,
            unseen=unseen or [],
            copies=copies,
            side_px=side_px,
            seed=seed,
        )
    out_console.print_json(json.dumps(counts))

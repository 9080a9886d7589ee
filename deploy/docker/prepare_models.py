"""Fetches the weights, builds the model repository that this Triton serves, checks its hashes, and keeps it for the
next pod.

The chart's init container runs it in the serving image, because a TensorRT plan works only with the TensorRT version
and the kind of GPU that built it. The cache key holds both, with the weights' version, the code that builds and the
cores it builds for, so that a claim may be shared by unlike nodes and outlives an upgrade. A cache that is damaged,
full or not writable never stops a pod.

    python3 prepare_models.py --source /weights|s3://bucket/prefix|hub://organisation/repository@commit
                              --flavour cpu|tensorrt --out /models/repository [--expect 0123456789ab]
                              [--cache /cache] [--precision fp32|fp16|bf16]
                              [--shadow SOURCE]     another model, served beside it as `code_shadow`

Exit 1 with one line that says what is wrong; `--out` is then not there, and Triton does not start. A shadow model
decides nothing: one that cannot be had is said and left out.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

from triton_models import build, graph, plan, weights
from triton_models.command import command_line, fail
from triton_models.repository import SHADOW, BuildError, check

Built = Literal["cpu", "tensorrt"]  # of the flavours, those that decide
FILES = (weights.ENCODER_FILE, weights.HEADS_FILE)


class PrepareError(Exception):
    """Weights that cannot be had or are not the expected ones; the message says what to change."""


FAILURES = (PrepareError, weights.WeightsError, BuildError, plan.PlanError, OSError)


def fetch(source: str, work: Path) -> Path:
    """The folder with the weights' files. Raises PrepareError where the source has none."""
    if source.startswith("s3://"):
        return _from_s3(source, work)
    if source.startswith("hub://"):
        return _from_hub(source, work)
    return Path(source)


def _from_s3(source: str, work: Path) -> Path:
    import boto3  # noqa: PLC0415 - only where the weights lie in a bucket
    from boto3.exceptions import Boto3Error  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    parts = urlsplit(source)
    client = boto3.client("s3")
    for name in FILES:
        try:
            client.download_file(parts.netloc, f"{parts.path.strip('/')}/{name}".lstrip("/"), str(work / name))
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise PrepareError(
                f"{source.rstrip('/')}/{name}: {error}; look at models.uri and models.credentialsSecret"
            ) from error
    return work


def _from_hub(source: str, work: Path) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where the weights lie on a hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    repository, _, revision = source.removeprefix("hub://").rpartition("@")
    if not repository:
        raise PrepareError(
            f"{source}: names no commit; hub://organisation/repository@commit is expected (models.uri, models.revision)"
        )
    try:
        snapshot_download(repository, revision=revision, allow_patterns=list(FILES), local_dir=work)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise PrepareError(
            f"{source}: {error}; look at models.uri, models.revision and models.credentialsSecret"
        ) from error
    return work


def cache_key(version: str, flavour: build.Flavour, precision: str) -> str:
    """The folder's name in the cache: weights, precision, the building code, and what the repository is bound to."""
    sources = sorted(Path(build.__file__).parent.glob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]
    key = f"{version}-{flavour}-{precision}-{code}"
    if flavour != "tensorrt":
        return f"{key}-cores{build.cores()}"
    return f"{key}-{plan.here().key(version).machine}"


def prepare(
    source: str, out: Path, flavour: build.Flavour, options: build.Options, cache: Path | None, expected: str | None
) -> str:
    """Put a verified repository at `out`; returns one line that says where it came from.

    Raises PrepareError, WeightsError, BuildError or PlanError.
    """
    with tempfile.TemporaryDirectory() as work:
        folder = fetch(source, Path(work))
        version = weights.load(folder).version
        if expected and version != expected:
            raise PrepareError(
                f"{source}: the weights have version {version}, models.expectedVersion is {expected}; change "
                "one of the two"
            )
        kept = cache / cache_key(version, flavour, options.precision) if cache else None
        if kept and take(kept, out):
            return f"{out}: model version {version} from the cache ({kept.name})"
        build.build(folder, flavour, out, options)
    check(out)
    if kept:
        try:
            keep(out, kept)
        except OSError as error:
            print(f"warning: not kept for the next pod, {kept}: {error}", file=sys.stderr)
    return f"{out}: model version {version} built ({flavour})"


def take(kept: Path, out: Path) -> bool:
    """Copy `kept` to `out` if it is there and whole; a damaged one is dropped, and said."""
    try:
        if not kept.is_dir():
            return False
        shutil.copytree(kept, out)
        check(out)
    except (BuildError, OSError) as error:
        print(f"warning: {kept} is dropped from the cache and built again: {error}", file=sys.stderr)
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)
        return False
    return True


def keep(repository: Path, kept: Path) -> None:
    """Copy the repository into the cache, whole or not at all; when another pod was quicker, its copy stays."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=kept.parent, prefix=f".{kept.name}."))
    try:
        shutil.copytree(repository, draft, dirs_exist_ok=True)
        draft.chmod(0o755)
        if not kept.exists():
            draft.rename(kept)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def add_shadow(repository: Path, other: Path) -> None:
    """Put the model `code` of `other` beside the repository's own, as `code_shadow`: what `triton_models.rollout
    shadow` does to a running server.
    """
    target = repository / SHADOW
    shutil.copytree(other / "code", target)
    configuration = target / "config.pbtxt"
    configuration.write_text(configuration.read_text().replace('name: "code"', f'name: "{SHADOW}"', 1))


app = command_line(__doc__)


@app.command()
def command(
    source: Annotated[str, typer.Option(help="folder, s3://bucket/prefix or hub://organisation/repository@commit")],
    flavour: Annotated[Built, typer.Option(help="for which machine")],
    out: Annotated[Path, typer.Option(help="model repository to write")],
    precision: Annotated[graph.Precision, typer.Option(help="of the encoder's matrix products")] = "fp32",
    expect: Annotated[str | None, typer.Option(help="model version that the weights must have")] = None,
    shadow: Annotated[str | None, typer.Option(help="source of a shadow model, as --source")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder that keeps built repositories")] = None,
) -> None:
    """Write the model repository that this Triton serves."""
    # The init container is started again after a failure, with what it left.
    shutil.rmtree(out, ignore_errors=True)
    options = build.Options(precision=precision)
    try:
        print(prepare(source, out, flavour, options, cache, expect))
    except FAILURES as error:
        shutil.rmtree(out, ignore_errors=True)
        fail(str(error), cause=error)
    if shadow:
        try:
            with tempfile.TemporaryDirectory() as work:
                print("shadow:", prepare(shadow, Path(work) / "shadow", flavour, options, cache, None))
                add_shadow(out, Path(work) / "shadow")
        except FAILURES as error:
            shutil.rmtree(out / SHADOW, ignore_errors=True)
            print(f"warning: no shadow model is served beside the other: {error}", file=sys.stderr)


if __name__ == "__main__":
    app()

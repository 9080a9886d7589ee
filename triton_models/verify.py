"""Proves that what a repository serves is the model in its weights: the same images through every form of it.

    python -m triton_models.verify REPOSITORY [--server HOST:PORT] [--images FOLDER]

Compared with float64 NumPy: PyTorch and scikit-learn (where installed), each ONNX graph, each TensorRT plan where the
repository has them, and the models of a running server. Prints the largest differences and the labels that changed;
exit 1 past the tolerance: 1e-4 for float32 (of an embedding that float32 itself cannot give so exactly, what its
rounding explains); for mixed precision scores within 0.01 and no label changed outside 0.45 to 0.55.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from triton_models import configuration, detector_verify, graph, plan, reference, weights
from triton_models.command import clear_errors, command_line
from triton_models.neighbours import Neighbours
from triton_models.plan_run import run_plan
from triton_models.repository import WEIGHTS_FOLDER, BuildError, check
from triton_models.rows import ROUNDINGS, TOLERANCES, Row, Tolerance
from triton_models.weights import IMAGE_PX, Array

Values = npt.NDArray[Any]


def verify(repository: Path, *, server: str | None = None, images: reference.Images | None = None) -> list[Row]:
    """Every form of the repository's model on `images` (the fixed set when None). Raises BuildError for a damaged
    repository.
    """
    manifest = check(repository)
    if manifest["flavour"] == "null":
        raise BuildError(f"{repository}: the null flavour has no model to verify")
    pixels = reference.images() if images is None else images
    loaded = weights.load(repository / "code" / WEIGHTS_FOLDER)
    compare = _Comparison(loaded, pixels, TOLERANCES[manifest["precision"]])
    rows = [
        compare.row(
            "NumPy float64, version of the weights", lambda: _same_version(loaded.version, manifest["model_version"])
        ),
        compare.row("PyTorch + scikit-learn", lambda: _frameworks(loaded, pixels), optional=True),
        *_graphs(repository, manifest, compare),
        *_plans(repository, manifest, compare),
    ]
    if server is None:
        return [*rows, *detector_verify.graphs(repository, manifest), Row("server", skipped="no --server given")]
    return [
        *rows,
        *detector_verify.graphs(repository, manifest),
        *_served(server, manifest, compare),
        *detector_verify.served(repository, manifest, server),
    ]


class _Comparison:
    """The reference's embeddings and scores, and how far others are from them."""

    def __init__(self, loaded: weights.Weights, pixels: reference.Images, tolerance: Tolerance) -> None:
        self.pixels, self.tolerance = pixels, tolerance
        self.embeddings = reference.embeddings(loaded, pixels)
        self.scores = weights.reference_scores(loaded, self.embeddings)
        self.nearest = Neighbours(loaded, self.embeddings)
        self.spread = self.embeddings.std()
        self.rounding = ROUNDINGS * reference.rounding(loaded, pixels, self.embeddings) / self.spread

    def row(self, name: str, give: Callable[[], dict[str, Values]], *, optional: bool = False) -> Row:
        """Compare what `give` returns: `embedding`, `scores`, the neighbours or all; `optional`: a missing library
        skips it.
        """
        try:
            values = give()
        except ImportError as error:
            return Row(name, skipped=f"{error.name} is not installed") if optional else Row(name, failure=str(error))
        except Exception as error:  # noqa: BLE001 - whatever a form of the model raises is its row of the table
            return Row(name, failure=" ".join(str(error).split())[:160])
        count = len(self.embeddings)
        shapes = {"embedding": self.embeddings.shape, "scores": self.scores.shape}
        shapes |= {"nearest": (count, 4), "distances": (count, 2)}
        for key, value in values.items():
            if np.shape(value) != shapes[key]:
                return Row(name, failure=f"{key} has shape {list(np.shape(value))}, expected {list(shapes[key])}")
        row = Row(name)
        if "scores" in values:
            row = replace(
                row, score=float(np.abs(values["scores"] - self.scores).max()), labels=self._changed(values["scores"])
            )
        if "embedding" in values:
            apart = np.abs(values["embedding"] - self.embeddings).max(axis=1) / self.spread
            worst = int(
                (apart / np.maximum(self.rounding, self.tolerance.embedding)).argmax()
            )  # NaN is the largest to argmax
            row = replace(row, embedding=float(apart[worst]), rounding=float(self.rounding[worst]))
        if "nearest" in values and not row.past(self.tolerance):  # the cause before what follows from it
            return replace(row, failure=self.nearest.problem(values, self._allowed()))
        return row

    def _allowed(self) -> Array:
        """How far an embedding may be from the reference's, [N]."""
        allowed: Array = np.maximum(self.rounding, self.tolerance.score)
        return allowed

    def _changed(self, scores: Values) -> int:
        """Labels that differ from the reference's although its score is not within the margin of 0.5."""
        clear = np.abs(self.scores - 0.5) > self.tolerance.margin
        return int((((scores >= 0.5) != (self.scores >= 0.5)) & clear).sum())


def _same_version(loaded: str, named: str) -> dict[str, Values]:
    if loaded != named:
        raise BuildError(f"the weights have version {loaded}, the manifest says {named}; build the repository again")
    return {}


def _frameworks(loaded: weights.Weights, pixels: reference.Images) -> dict[str, Values]:
    embeddings = reference.torch_embeddings(loaded, pixels)
    return {"embedding": embeddings, "scores": reference.sklearn_scores(loaded, embeddings)}


def _graphs(repository: Path, manifest: dict[str, Any], compare: _Comparison) -> list[Row]:
    """Each model's ONNX graph by ONNX Runtime, heads on the reference's embeddings."""
    rows = []
    for name, (inputs, outputs) in configuration.MODELS.items():
        path = repository / name / str(manifest["version_number"]) / "model.onnx"
        if not path.is_file():
            continue  # an ensemble
        if manifest["precision"] == "bf16" and inputs == ("images",):
            rows.append(Row(f"ONNX graph {name}", skipped="ONNX Runtime has no bfloat16 kernels on a CPU"))
            continue
        given = compare.pixels if inputs == ("images",) else compare.embeddings.astype(np.float32)
        rows.append(compare.row(f"ONNX graph {name}", partial(graph.run, path, given, outputs), optional=True))
    return rows


def _plans(repository: Path, manifest: dict[str, Any], compare: _Comparison) -> list[Row]:
    """Each model's TensorRT plan, on this machine's GPU."""
    if not manifest["plans"]:
        return []
    trt, rows = plan.load_tensorrt(), []
    for name, (inputs, _) in configuration.MODELS.items():
        for path in (repository / name / str(manifest["version_number"])).glob("*.plan"):
            given = compare.pixels if inputs == ("images",) else compare.embeddings.astype(np.float32)
            rows.append(compare.row(f"TensorRT plan {name}", partial(run_plan, trt, path, given)))
    return rows


def _served(server: str, manifest: dict[str, Any], compare: _Comparison) -> list[Row]:
    """Each model the server has ready, `code` in any case."""
    from tritonclient import grpc  # noqa: PLC0415 - only with --server

    rows = []
    with closing(grpc.InferenceServerClient(server)) as client:
        for name, (inputs, _) in configuration.MODELS.items():
            try:
                ready = client.is_model_ready(name)
            except grpc.InferenceServerException as error:
                return [Row(f"server {server}", failure=f"{error.message()}; is it running?")]
            given = compare.pixels if inputs == ("images",) else compare.embeddings.astype(np.float32)
            ask = partial(_ask, client, name, given, manifest["model_version"])
            rows.append(
                compare.row(f"server {name}", ask)
                if ready or name == "code"
                else Row(f"server {name}", skipped="not loaded")
            )
    return rows


def _ask(client: Any, name: str, given: Values, model_version: str) -> dict[str, Values]:
    from tritonclient import grpc  # noqa: PLC0415 - only with --server

    (tensor_name,), outputs = configuration.MODELS[name]
    serves = client.get_model_config(name).config.parameters["model_version"].string_value
    if serves != model_version:
        raise BuildError(f"the server serves version {serves or 'unknown'}, the repository holds {model_version}")
    tensor = grpc.InferInput(
        tensor_name, list(given.shape), configuration.TENSORS[tensor_name][0].removeprefix("TYPE_")
    )
    tensor.set_data_from_numpy(given)
    answer = client.infer(
        name, [tensor], outputs=[grpc.InferRequestedOutput(output) for output in outputs], client_timeout=300
    )
    return {output: answer.as_numpy(output) for output in outputs}


def folder_images(folder: Path, most: int = 64) -> reference.Images:
    """The central 224 x 224 of a folder's images (at most `most`, by name), black where smaller. Raises BuildError when
    there is none.
    """
    from PIL import Image  # noqa: PLC0415 - only with --images

    crops: list[npt.NDArray[np.uint8]] = []
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    for path in paths[:most]:
        try:
            image = Image.open(path).convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            raise BuildError(f"{path}: no readable image ({error}); take it out of the folder") from error
        left, top = (image.width - IMAGE_PX) // 2, (image.height - IMAGE_PX) // 2
        crops.append(np.asarray(image.crop((left, top, left + IMAGE_PX, top + IMAGE_PX))))
    if not crops:
        raise BuildError(f"{folder}: no JPEG, PNG or WebP image there")
    return np.stack(crops)


app = command_line(__doc__)


@app.command()
def command(
    repository: Annotated[Path, typer.Argument(metavar="REPOSITORY", help="written by python -m triton_models.build")],
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="gRPC address of a server that serves it")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="images to use instead of the fixed set")
    ] = None,
) -> None:
    """Compare every form of a repository's model."""
    with clear_errors(repository):
        rows = verify(repository, server=server, images=folder_images(images) if images else None)
        manifest = check(repository)
    print(
        f"{repository}: flavour {manifest['flavour']}, precision {manifest['precision']}, model "
        f"version {manifest['model_version']}"
    )
    print_table(rows, TOLERANCES[manifest["precision"]])
    if problem := verdict(rows, manifest):
        print(problem)
        raise typer.Exit(1)
    print("the same model in every form")


def print_table(rows: Sequence[Row], tolerance: Tolerance) -> None:
    """A line for each form: the largest differences, the labels that changed, and what that means."""
    print(f"{'':40}{'embedding':>12}{'score':>12}{'labels':>8}")
    for row in rows:
        numbers = "".join(
            f"{value:12.1e}" if value is not None else f"{'-':>12}" for value in (row.embedding, row.score)
        )
        if row.skipped:
            said = f"skipped: {row.skipped}"
        elif row.failure:
            said = row.failure
        elif not row.passes(tolerance):
            said = "PAST THE TOLERANCE"
        elif row.allowed and (row.score or 0) > tolerance.score:
            said = f"ok: quantised, at most {row.allowed:.0e}"
        elif (row.embedding or 0) > tolerance.embedding:
            said = f"ok: float32's rounding explains {row.rounding:.1e} on that image"
        else:
            said = "ok"
        print(f"{row.name:40}{numbers}{row.labels:8}  {said}")


def verdict(rows: Sequence[Row], manifest: dict[str, Any]) -> str | None:
    """Why the repository must not be served, or was not verified; None where every form is the same model."""
    tolerance = TOLERANCES[manifest["precision"]]
    if past := [f"{row.name}: {row.past(tolerance)}" for row in rows if not row.passes(tolerance)]:
        return f"NOT the same model, do not serve this repository: {'; '.join(past)}"
    if all(row.embedding is None and row.score is None for row in rows):
        return "NOTHING was compared: install what the rows say is missing (make setup-all), or name a --server"
    skipped = [row.name for row in rows if row.skipped and row.name.startswith("ONNX graph code")]
    if skipped and not manifest["plans"] and all(row.score is None for row in rows if row.name == "server code"):
        return (
            f"{skipped[0]} is what this repository serves, and it was not run: verify where ONNX Runtime runs "
            "it, or name a --server"
        )
    return None


if __name__ == "__main__":
    app(prog_name="python -m triton_models.verify")

"""The CPU flavour's model: one file for `code`, `code_encoder` and `code_heads`, copied beside each graph as
`model.py`.

Runs in Triton's Python backend, in an interpreter of its own (NumPy below 2, ONNX Runtime, nothing of this project).
Everything it needs to know stands in the model's configuration, written by `python -m triton_models.build`.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

REBUILD = "write the repository again with python -m triton_models.build"


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        """Check the interpreter and the files, this one among them, then open the graph; whatever is wrong is said in
        one line.
        """
        if int(np.__version__.split(".")[0]) >= 2:
            raise pb_utils.TritonModelException(
                f"NumPy {np.__version__} in the server's environment: this backend would answer with empty "
                "tensors; install requirements/triton.txt"
            )
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        for name, expected in json.loads(parameters["files"]).items():
            check(folder / name, expected)
        (given,) = config["input"]
        self.input, self.shape = given["name"], tuple(int(size) for size in given["dims"])
        self.outputs = {tensor["name"]: tuple(int(size) for size in tensor["dims"]) for tensor in config["output"]}
        self.rows = int(parameters["rows"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(parameters["threads"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = folder / "model.onnx"
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(graph), options, providers=["CPUExecutionProvider"])
            answer = self.run(np.ones((1, *self.shape), pb_utils.triton_string_to_numpy(given["data_type"])))
        except Exception as error:
            raise pb_utils.TritonModelException(
                f"{graph}: ONNX Runtime cannot use it ({one_line(error)}); {REBUILD}"
            ) from error
        for (name, shape), values in zip(self.outputs.items(), answer, strict=True):
            if values.shape != (1, *shape) or not np.isfinite(values).all():
                got = (
                    "NaN or infinite numbers"
                    if values.shape == (1, *shape)
                    else f"shape {list(values.shape)} instead of {[1, *shape]}"
                )
                raise pb_utils.TritonModelException(f"{graph}: its {name} has {got}; {REBUILD}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run of the graph for the whole list of requests; each gets its rows back, or hears why it has none."""
        parts = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        refusals = [self.refusal(request, part) for request, part in zip(requests, parts, strict=True)]
        kept = [part for part, refusal in zip(parts, refusals, strict=True) if refusal is None]
        try:
            results = self.run(kept[0] if len(kept) == 1 else np.concatenate(kept)) if kept else []
        except Exception as error:  # noqa: BLE001 - whatever it is, the senders must hear of it
            failed = pb_utils.TritonError(f"ONNX Runtime failed: {one_line(error)}")
            return [pb_utils.InferenceResponse(error=refusal or failed) for refusal in refusals]
        ends = np.cumsum([len(part) for part in kept])[:-1]
        rows = zip(*(np.split(result, ends) for result in results), strict=True)
        return [
            pb_utils.InferenceResponse(error=refusal)
            if refusal
            else pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, values) for name, values in zip(self.outputs, next(rows), strict=True)]
            )
            for refusal in refusals
        ]

    def refusal(self, request: Any, part: np.ndarray) -> Any:
        """Why a request is not computed, or None: nobody waits for it any more, or it would cost the whole batch.

        Triton checks shapes itself, but keeps the batch size in 32 bits: one of 2^32 arrives here as none.
        """
        if request.is_cancelled():
            return pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED)
        if part.shape[1:] != self.shape:
            return pb_utils.TritonError(
                f"{self.input} has shape {list(part.shape)}, expected [N, {', '.join(map(str, self.shape))}]",
                pb_utils.TritonError.INVALID_ARG,
            )
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            return pb_utils.TritonError(
                f"{self.input} holds NaN or infinite numbers; no score can be given", pb_utils.TritonError.INVALID_ARG
            )
        return None

    def run(self, given: np.ndarray) -> list[np.ndarray]:
        """The outputs for all rows, computed `self.rows` at a time."""
        pieces = [
            self.session.run(list(self.outputs), {self.input: given[start : start + self.rows]})
            for start in range(0, len(given), self.rows)
        ]
        return [np.concatenate(piece) for piece in zip(*pieces, strict=True)]


def check(path: Path, expected: str) -> None:
    """Compare a file's SHA-256 with the one that the configuration names."""
    if not path.is_file():
        raise pb_utils.TritonModelException(f"{path}: the file is missing; {REBUILD}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise pb_utils.TritonModelException(
            f"{path}: damaged or replaced (SHA-256 {digest.hexdigest()[:12]}, the configuration says "
            f"{expected[:12]}); {REBUILD}"
        )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

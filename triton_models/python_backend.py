"""The CPU flavour's model: one file for `code`, `code_encoder` and `code_heads`, copied beside each graph as `model.py`.

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
        """Check the interpreter and the files, then open the graph; whatever is wrong is said in one line."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise pb_utils.TritonModelException(
                f"NumPy {np.__version__} in the server's environment: this backend would answer with empty tensors; install requirements/triton.txt"
            )
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        for name, expected in json.loads(parameters["files"]).items():
            check(folder / name, expected)
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(parameters["threads"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise pb_utils.TritonModelException(f"{folder / 'model.onnx'}: ONNX Runtime cannot read it ({one_line(error)}); {REBUILD}") from error

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run of the graph for the whole list of requests; each gets its rows back."""
        parts = [[pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests] for name in self.inputs]
        feed = {name: part[0] if len(part) == 1 else np.concatenate(part) for name, part in zip(self.inputs, parts, strict=True)}
        try:
            results = self.session.run(self.outputs, feed)
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender must hear of it
            failed = pb_utils.TritonError(f"ONNX Runtime failed: {one_line(error)}")
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        ends = np.cumsum([len(part) for part in parts[0]])[:-1]
        rows = zip(*(np.split(result, ends) for result in results), strict=True)
        return [pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in zip(self.outputs, row, strict=True)]) for row in rows]


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
            f"{path}: damaged or replaced (SHA-256 {digest.hexdigest()[:12]}, the configuration says {expected[:12]}); {REBUILD}"
        )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

"""Triton's configurations, as text: one function per kind of model, so that flavours can differ only where they mean
to.

A model's numbered version folder is its `model_version` read as a hexadecimal number: every answer of the server then
names the weights that gave it (`InferResponse.model_version`), whatever is being loaded at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from triton_models.weights import HEADS, IMAGE_PX, WIDTH

MAX_BATCH = 256
DETECTOR_MAX_BATCH = 64
TENSORS = {
    "images": ("TYPE_UINT8", f"{IMAGE_PX}, {IMAGE_PX}, 3"),
    "embedding": ("TYPE_FP32", f"{WIDTH}"),
    "scores": ("TYPE_FP32", f"{len(HEADS)}"),
    "nearest": ("TYPE_INT32", "4"),
    "distances": ("TYPE_FP32", "2"),
}
# What each model takes and gives.
MODELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "code": (("images",), ("embedding", "scores", "nearest", "distances")),
    "code_encoder": (("images",), ("embedding",)),
    "code_heads": (("embedding",), ("scores", "nearest", "distances")),
}
# Rows that the CPU flavour computes at a time: what an encoder's eight images need stays in the processor's cache and
# below 200 MB (256 at once take 1 GB and 20 % longer); the heads alone read their bank once per run, so they take all
# rows together.
CPU_ROWS = {"code": 8, "code_encoder": 8, "code_heads": MAX_BATCH}
# No priorities, no queue time-outs and no queue limit: any of them turns Triton's prefetching off, and then a request
# that arrives just as an answer leaves is not noticed for half a second (docs/decisions.md). The queue stays short
# because the worker bounds its calls in flight.
SCHEDULING = """dynamic_batching {{
  preferred_batch_size: [ {preferred} ]
  max_queue_delay_microseconds: {delay}
}}
"""


def version_number(model_version: str) -> int:
    """The numbered folder of a model version: 12 hex digits as a number."""
    return int(model_version, 16)


def python_model(
    name: str, model_version: str, files: Mapping[str, str], *, instances: int, threads: int, groups: Sequence[str] = ()
) -> str:
    """CPU: the Python backend over ONNX Runtime. `files` are name -> SHA-256, checked at start; `threads` per
    instance; `groups`: the names that the output `nearest` counts.
    """
    parameters = {"files": json.dumps(files), "threads": str(threads), "rows": str(CPU_ROWS[name])} | _groups(groups)
    # Merging beyond 32 gains nothing on a CPU and makes everybody wait for the whole batch.
    scheduling = SCHEDULING.format(preferred="8, 16, 32", delay=1000)
    return (
        _head(name, 'backend: "python"', model_version)
        + f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]\n"
        + scheduling
        + _warm_up(name, [1])
        + _parameters(model_version, parameters)
    )


def tensorrt_model(
    name: str, model_version: str, *, plan: str, capability: str, instances: int = 2, groups: Sequence[str] = ()
) -> str:
    """GPU: a TensorRT plan, found by the GPU's compute capability alone, so that another GPU finds none instead of a
    wrong one. `groups` as of `python_model`.
    """
    scheduling = SCHEDULING.format(preferred="32, 64, 128, 256", delay=500)
    return (
        _head(name, 'backend: "tensorrt"', model_version)
        + 'default_model_filename: "no-plan-for-this-gpu--rebuild-with-python-m-triton_models.build"\n'
        + f'cc_model_filenames [ {{ key: "{capability}" value: "{plan}" }} ]\n'
        + f"instance_group [ {{ kind: KIND_GPU count: {instances} }} ]\n"
        + scheduling
        + (
            "optimization { cuda { graphs: false } input_pinned_memory { enable: true } output_pinned_memory { "
            "enable: true } }\n"
        )
        + _warm_up(name, [1, 32, MAX_BATCH])
        + _parameters(model_version, _groups(groups))
    )


def detector_model(
    name: str,
    model_version: str,
    shape: tuple[int, int, int],
    described: Mapping[str, str],
    serving: Mapping[str, str],
) -> str:
    """Another model beside `code`. `shape`: height and width of its view, and the width of its embedding.

    `described`: the parameters `heads` and `view`, which the worker reads; `serving`: what the Python backend wants to
    know (CPU), or `plan` and `capability` (GPU).
    """
    height, width, embedding = shape
    images = f"data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ]"
    first = f'{{ key: "images" value {{ {images} zero_data: true }} }}'
    heads = len(described["heads"].split(","))
    backend = "tensorrt" if "plan" in serving else "python"
    text = f"""name: "{name}"
backend: "{backend}"
max_batch_size: {DETECTOR_MAX_BATCH}
input [ {{ name: "images" {images} }} ]
output [
  {{ name: "embedding" data_type: TYPE_FP32 dims: [ {embedding} ] }},
  {{ name: "scores" data_type: TYPE_FP32 dims: [ {heads} ] }}
]
version_policy {{ specific {{ versions: [ {version_number(model_version)} ] }} }}
model_warmup [ {{ name: "1" batch_size: 1 inputs {first} }} ]
"""
    if backend == "tensorrt":
        text += (
            'default_model_filename: "no-plan-for-this-gpu--rebuild-with-python-m-triton_models.build"\n'
            f'cc_model_filenames [ {{ key: "{serving["capability"]}" value: "{serving["plan"]}" }} ]\n'
            "instance_group [ { kind: KIND_GPU count: 1 } ]\n"
        )
        parameters = dict(described)
    else:
        text += f"instance_group [ {{ kind: KIND_CPU count: {serving['instances']} }} ]\n"
        parameters = {**described, **{key: value for key, value in serving.items() if key != "instances"}}
    scheduling = SCHEDULING.format(preferred="8, 16, 32", delay=1000)
    return text + scheduling + _parameters(model_version, parameters)


def ensemble(model_version: str, groups: Sequence[str] = ()) -> str:
    """`code` as code_encoder followed by code_heads, both pinned to the version of the same weights; `groups` as of
    `python_model`.
    """
    number = version_number(model_version)
    return (
        _head("code", 'platform: "ensemble"', model_version)
        + f"""ensemble_scheduling {{ step [
  {{ model_name: "code_encoder" model_version: {number}
    input_map {{ key: "images" value: "images" }} output_map {{ key: "embedding" value: "embedding" }} }},
  {{ model_name: "code_heads" model_version: {number}
    input_map {{ key: "embedding" value: "embedding" }} output_map {{ key: "scores" value: "scores" }}
    output_map {{ key: "nearest" value: "nearest" }} output_map {{ key: "distances" value: "distances" }} }}
] }}
"""
        + _parameters(model_version, _groups(groups))
    )


def _groups(names: Sequence[str]) -> dict[str, str]:
    return {"groups": json.dumps(list(names))} if names else {}


def _head(name: str, kind: str, model_version: str) -> str:
    inputs, outputs = MODELS[name]
    return (
        f'name: "{name}"\n{kind}\nmax_batch_size: {MAX_BATCH}\n'
        + _tensors("input", inputs)
        + _tensors("output", outputs)
        + f"version_policy {{ specific {{ versions: [ {version_number(model_version)} ] }} }}\n"
    )


def _tensors(side: str, names: Sequence[str]) -> str:
    lines = [f'  {{ name: "{name}" data_type: {TENSORS[name][0]} dims: [ {TENSORS[name][1]} ] }}' for name in names]
    return f"{side} [\n" + ",\n".join(lines) + "\n]\n"


def _warm_up(name: str, sizes: Sequence[int]) -> str:
    (tensor,) = MODELS[name][0]
    data_type, dims = TENSORS[tensor]
    entries = [
        f'  {{ name: "{size}" batch_size: {size}\n'
        f'    inputs {{ key: "{tensor}" value {{ data_type: {data_type} dims: [ {dims} ] zero_data: true }} }} }}'
        for size in sizes
    ]
    return "model_warmup [\n" + ",\n".join(entries) + "\n]\n"


def _parameters(model_version: str, parameters: Mapping[str, str]) -> str:
    entries = {"model_version": model_version, **parameters}
    # JSON's quoting is a subset of the text format's.
    lines = [f'  {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}' for key, value in entries.items()]
    return "parameters [\n" + ",\n".join(lines) + "\n]\n"


def as_json(values: Mapping[str, str]) -> str:
    """A parameter that is a table."""
    return json.dumps(dict(values))

"""Runs a TensorRT plan without a server, so that `verify` can compare it before anything serves it.

Through the CUDA driver alone (`plan.Driver`). Not run so far for want of a GPU; tests/triton_models/test_gpu.py is the
test to run on one.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.plan import REBUILD, Driver, PlanError, recorder


class _Cuda(Driver):
    """Memory of the first visible GPU, in the context that TensorRT uses too."""

    def __init__(self) -> None:
        super().__init__()
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def allocate(self, size_bytes: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address


def run_plan(trt: Any, path: Path, given: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """The plan's outputs by name for one batch (float32 or int32, as all outputs of our graphs are).

    `trt`: the module `tensorrt` that built it. `given`: [N, ...] of the input's type, N within the plan's profile.

    Raises
    ------
    PlanError when there is no GPU or the plan is not for it.

    """
    cuda, said = _Cuda(), recorder(trt)
    runtime = trt.Runtime(said)  # must outlive the engine
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise PlanError(f"{path}: TensorRT {trt.__version__} does not take the plan ({said.last}); {REBUILD}")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    (source,) = (name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    if not context.set_input_shape(source, given.shape):
        raise PlanError(f"{path}: {source} of shape {list(given.shape)} is not within the plan's profile ({said.last})")
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.empty(
            tuple(context.get_tensor_shape(name)),
            np.int32 if engine.get_tensor_dtype(name) == trt.int32 else np.float32,
        )
        for name in names
        if name != source
    }
    arrays[source] = np.ascontiguousarray(given)
    with ExitStack() as stack:
        addresses = {}
        for name, array in arrays.items():
            addresses[name] = cuda.allocate(array.nbytes)
            stack.callback(cuda.call, "cuMemFree_v2", addresses[name])
            context.set_tensor_address(name, addresses[name].value)
        _copy(cuda, "cuMemcpyHtoD_v2", addresses[source], arrays[source])
        if not context.execute_async_v3(0):  # on the default stream
            raise PlanError(f"{path}: TensorRT {trt.__version__} could not run the plan ({said.last})")
        cuda.call("cuCtxSynchronize")
        for name in names:
            if name != source:
                _copy(cuda, "cuMemcpyDtoH_v2", addresses[name], arrays[name])
    return {name: arrays[name] for name in names if name != source}


def _copy(cuda: _Cuda, direction: str, address: ctypes.c_uint64, array: npt.NDArray[Any]) -> None:
    here = array.ctypes.data_as(ctypes.c_void_p)
    cuda.call(
        direction,
        *((address, here) if direction == "cuMemcpyHtoD_v2" else (here, address)),
        ctypes.c_size_t(array.nbytes),
    )

"""Images to ask a tritonserver for, and how many requests wait in it."""

import urllib.request

import numpy as np


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


def pending(metrics_port: int) -> float:
    """Requests that wait in the server's queues."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("nv_inference_pending_request_count{")
    )

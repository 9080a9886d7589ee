"""The 19 ops, the operator T that draws and applies them, and the crops, all on PIL images.

This is the readable reference: it is checked pixel by pixel against values of the released code (tests/golden). The
batched fast path in `fast.py` is compared with it op by op.
"""

from train.transforms.operator import TransformOperator
from train.transforms.ops import OPS

__all__ = ["OPS", "TransformOperator"]

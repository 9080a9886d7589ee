"""Parameter groups and learning rate as timm 0.9.2 made them from the released arguments; checked against
tests/golden/schedule.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from train.recipe import Optimisation

NO_DECAY = frozenset({"cls_token", "pos_embed"})


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups {"params", "weight_decay", "names"} for AdamW: no decay on 1-d tensors, cls_token and pos_embed; decay
    on the rest.
    """
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay, "names": []} for decay in (0.0, weight_decay)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[0 if parameter.ndim <= 1 or name in NO_DECAY else 1]
            group["params"].append(parameter)
            group["names"].append(name)
    return groups


def learning_rate(epoch: float, optimisation: Optimisation | None = None) -> float:
    """The rate in `epoch` (from 0; a fraction where it moves with every step): linear warm-up from `warmup_lr`,
    then min + (lr - min) (1 + cos(pi e / epochs)) / 2.

    As released the cosine runs underneath the warm-up, so `lr` itself is never reached; after `epochs` it is `min_lr`.
    """
    plan = optimisation or Optimisation()
    if epoch < plan.warmup_epochs:
        return plan.warmup_lr + epoch * (plan.lr - plan.warmup_lr) / plan.warmup_epochs
    position = epoch - plan.warmup_epochs if plan.warmup_prefix else epoch
    if position >= plan.epochs:
        return plan.min_lr
    return plan.min_lr + 0.5 * (plan.lr - plan.min_lr) * (1 + math.cos(math.pi * position / plan.epochs))

"""CoDE's contrastive loss (paper section 3, released `losses/function_loss.py` and `engine.py`), as pure functions of
embeddings.

Negatives are explicit and only of the other class: samples of the own class never enter the denominator. No weights, no
projection head, no queue, no gather over GPUs. `variant="released"` keeps a defect of the released engine (line 174
sums real + real, so fake anchors get no gradient), so that both can be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Variant = Literal["symmetric", "released"]
Terms = Literal["both", "global_only", "multiscale_only"]
VIEWS = ("real", "fake", "real_T", "fake_T", "real_global", "real_local", "fake_global", "fake_local")


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean over i of -log(exp(q_i.p_i / t) / (exp(q_i.p_i / t) + sum_j exp(q_i.n_j / t))), all rows L2-normalised.

    query, positive: [N, D]; negatives: [M, D]; a 0-d tensor in the inputs' dtype. Raises ValueError for other shapes.
    """
    if query.ndim != 2 or query.shape != positive.shape or negatives.ndim != 2 or negatives.shape[1] != query.shape[1]:
        shapes = f"{list(query.shape)}, {list(positive.shape)}, {list(negatives.shape)}"
        raise ValueError(f"info_nce takes [N, D], [N, D], [M, D], got {shapes}")
    query, positive, negatives = (F.normalize(rows, dim=-1) for rows in (query, positive, negatives))
    own = (query * positive).sum(dim=-1, keepdim=True)  # [N, 1]
    logits = torch.cat([own, query @ negatives.T], dim=1) / temperature  # [N, 1 + M]
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def code_loss(
    views: Mapping[str, Tensor],
    real_permutation: Tensor,
    fake_permutation: Tensor,
    *,
    temperature: float = 0.1,
    variant: Variant = "symmetric",
    terms: Terms = "both",
) -> dict[str, Tensor]:
    """The terms of one step and their total, each a 0-d tensor.

    views: [N, D] under the names in VIEWS, in sample order; the permutations ([N] int64) pair an anchor with the
    transformed view of ANOTHER sample of its class. The multi-scale terms have the LOCAL crop as query and the GLOBAL
    crop of the same image as positive, unpermuted. `terms` leaves one kind out (ablations); its views may then be
    absent. Raises ValueError for an unknown variant or terms.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"loss variant {variant!r}: expected one of {', '.join(get_args(Variant))}")
    if terms not in get_args(Terms):
        raise ValueError(f"loss terms {terms!r}: expected one of {', '.join(get_args(Terms))}")
    losses: dict[str, Tensor] = {}
    if terms != "multiscale_only":
        real_T, fake_T = views["real_T"][real_permutation], views["fake_T"][fake_permutation]
        losses["global_real"] = info_nce(views["real"], real_T, fake_T, temperature)
        losses["global_fake"] = info_nce(views["fake"], fake_T, real_T, temperature)
    if terms != "global_only":
        losses["multiscale_real"] = info_nce(
            views["real_local"], views["real_global"], views["fake_global"], temperature
        )
        losses["multiscale_fake"] = info_nce(
            views["fake_local"], views["fake_global"], views["real_global"], temperature
        )
    real, fake = (
        torch.stack([loss for name, loss in losses.items() if name.endswith(label)]).mean()
        for label in ("real", "fake")
    )
    return {**losses, "total": real + real if variant == "released" else real + fake}


def draw_permutation(n: int, generator: torch.Generator | None = None) -> Tensor:
    """int64 [n] without a fixed point: `randperm`, or roll-by-1 where that has one (about 63 % of draws, as released).

    Raises ValueError for n < 2: a sample alone has no other positive.
    """
    if n < 2:
        raise ValueError(f"a permutation without fixed point needs at least 2 samples, got {n}: raise the batch size")
    permutation = torch.randperm(n, generator=generator)
    identity = torch.arange(n)
    return torch.roll(identity, 1) if bool((permutation == identity).any()) else permutation

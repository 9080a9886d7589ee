"""A start for small data: the encoder begins as a spectrum analyser instead of as noise.

From timm's initialisation a ViT does not leave the plateau of the contrastive loss in the hour of CPU that the demo
weights get. Here the patch embedding takes the 8 x 8 DCT coefficients of Y, Cb and Cr, the first MLP adds their
magnitudes, and the second attention lets every token, the class token too, take the mean over all tokens. Traces of
generators lie in such spectra: Frank et al., "Leveraging Frequency Analysis for Deep Fake Image Recognition" (ICML
2020). Everything is trained from there; the paper's recipe does without.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from triton_models.weights import STD

PATCH_PX, BLOCK_PX, WIDTH = 16, 8, 192
# Rows Y, Cb, Cr of JPEG's colours (ITU-T T.871), columns R, G, B.
YCC = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))
# Mean magnitude of a natural image's coefficients in levels of 255: amplitude / frequency^1.6 + floor, fitted to 870
# images; DC apart.
AMPLITUDE, DC_MAGNITUDE, DECAY, FLOOR = (60.0, 7.0, 7.0), (500.0, 100.0, 100.0), 1.6, 0.25


def dct_filters(seed: int) -> Tensor:
    """float32 [192, 3, 16, 16] on normalised RGB: 64 coefficients of each of Y, Cb, Cr, scaled to a mean magnitude near
    1.

    Each looks at one of the four 8 x 8 blocks of its patch, drawn from `seed`; over all patches every part of a block's
    spectrum is seen.
    """
    rng = np.random.default_rng(seed)
    grid = np.arange(BLOCK_PX)
    basis = np.cos(np.pi * (2 * grid[None] + 1) * grid[:, None] / (2 * BLOCK_PX)) * math.sqrt(2 / BLOCK_PX)
    basis[0] /= math.sqrt(2)
    filters = np.zeros((WIDTH, 3, PATCH_PX, PATCH_PX))
    for index in range(WIDTH):
        channel, (u, v) = index // BLOCK_PX**2, divmod(index % BLOCK_PX**2, BLOCK_PX)
        top, left = BLOCK_PX * rng.integers(2), BLOCK_PX * rng.integers(2)
        magnitude = AMPLITUDE[channel] / math.hypot(u, v) ** DECAY + FLOOR if u or v else DC_MAGNITUDE[channel]
        colour = np.array(YCC[channel]) * np.array(STD) * 255 / magnitude
        filters[index, :, top : top + BLOCK_PX, left : left + BLOCK_PX] = colour[:, None, None] * np.outer(
            basis[u], basis[v]
        )
    return torch.from_numpy(filters).float()


@torch.no_grad()
def initialise_spectral(encoder: nn.Module, seed: int) -> None:
    """Set the parameters of a fresh ViT-Tiny/16 in place: patch embedding, the first MLP and the second attention; the
    rest stays timm's.
    """
    generator = torch.Generator().manual_seed(seed)
    identity = torch.eye(WIDTH)

    def noise(rows: int, columns: int, spread: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * spread

    def weight(name: str) -> Tensor:
        return encoder.get_parameter(f"{name}.weight")

    weight("patch_embed.proj").copy_(dct_filters(seed))
    weight("blocks.0.attn.proj").mul_(0.1)
    # GELU(x) + GELU(-x) = x erf(x / sqrt 2), close to |x|; the other half of the units sees mixtures of coefficients.
    weight("blocks.0.mlp.fc1").copy_(torch.cat([identity, -identity, noise(2 * WIDTH, WIDTH, 0.07)]))
    weight("blocks.0.mlp.fc2").copy_(
        noise(WIDTH, 4 * WIDTH, 0.02) + torch.cat([identity, identity, torch.zeros(WIDTH, 2 * WIDTH)], dim=1)
    )
    # Queries and keys near zero attend to all tokens alike; values and projection hand on what they see.
    weight("blocks.1.attn.qkv")[: 2 * WIDTH].mul_(0.5)
    weight("blocks.1.attn.qkv")[2 * WIDTH :].copy_(identity)
    weight("blocks.1.attn.proj").copy_(identity)

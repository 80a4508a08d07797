"""Randomness as a function of (seed, place): every optimiser step starts from its own seed.

So there is no generator state that a resume could miss, evaluating more or less often changes no weight, and a student
and its twin without distillation draw the same image sizes at the same step although one of them runs more code.
"""

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """64 bits from a blake2b hash of `parts`; the same on every machine and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_all(*parts: int | str) -> None:
    """Seed torch (CPU and GPUs), numpy and `random` from `parts`."""
    seed = derive_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

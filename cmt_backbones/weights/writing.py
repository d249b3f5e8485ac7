"""Weights into a file, complete or not at all."""
import os
from pathlib import Path

import torch

from .layouts import StateDict


def save(weights: StateDict, out: Path) -> None:
    """Writes named tensors as a plain state dict, to `.safetensors` or for `torch.load`."""
    part = out.with_name(f'.{out.stem}.part{out.suffix}')
    weights = {k: v.contiguous() for k, v in weights.items()}
    if out.suffix == '.safetensors':
        from safetensors.torch import save_file
        save_file(weights, str(part))
    else:
        torch.save(weights, part)
    os.replace(part, out)

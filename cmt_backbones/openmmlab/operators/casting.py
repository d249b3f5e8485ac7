"""16-bit numbers, which torchvision has no kernels for, or kernels that sum in 16 bits."""
import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

"""A model on a GPU that is not there: shapes, dtypes and devices of everything, no numbers."""
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def move(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Parameters and buffers as fake CUDA tensors, in place."""
    with mode:
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    fake = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device='cuda')
                    module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = torch.empty_strided(b.shape, b.stride(), dtype=b.dtype, device='cuda')
    return model

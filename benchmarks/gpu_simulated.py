"""What a GPU would be given to do, by tensors without numbers: `python benchmarks/gpu_simulated.py`.

No GPU is needed, and nothing is timed: PyTorch's fake tensors know the shape, dtype and device of every result.
For a forward pass in training, by AMP, it prints how many operators reach the GPU, what is kept for the backward pass,
and by which operator attention is computed. Not in float32: without a driver PyTorch's choice of a kernel for a mask is
not that of a GPU.
"""
import argparse

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cmt_backbones import CMT, ConvNeXt

VIEWS = ('view', 'permute', 'transpose', 't', 'detach', 'expand', 'unsqueeze', 'squeeze', 'slice', 'select', 'alias',
         'split', 'unbind', '_unsafe_view', 'empty', 'new_empty', 'empty_like', 'as_strided')


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).split('.')[1]
        if func.namespace == 'aten' and name not in VIEWS and not name.startswith(('sym_', 'is_')):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def on_fake_gpu(model, mode):
    with mode:
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(p.shape, device='cuda'))
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device='cuda')
    return model


def forward(model, amp, shape):
    """Operators and bytes kept of one forward pass in training."""
    mode, kept = FakeTensorMode(), {}
    model = on_fake_gpu(model.train(), mode)

    def keep(x):
        if x.is_cuda:
            storage = x.untyped_storage()
            kept[storage._cdata] = storage
        return x
    with mode, torch.autocast('cuda', amp):
        x = torch.randn(*shape, device='cuda')
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        with Operators() as operators, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            outs = model(x)
    assert all(out.requires_grad for out in outs)
    return operators.names, sum(s.nbytes() for key, s in kept.items() if key not in own)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1280], metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=2)
    args = parser.parse_args()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # autocast asks for a GPU
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    print('| model | attention | operators | GB kept for the backward pass |\n|---|---|---|---|')
    for name, make in (('CMT-S', lambda: CMT('small')), ('CMT-S, with_cp', lambda: CMT('small', with_cp=True)),
                       ('ConvNeXt-T', lambda: ConvNeXt('tiny'))):
        operators, kept = forward(make(), torch.bfloat16, (args.batch, 3, *args.shape))
        by = sorted({o.strip('_') for o in operators if 'attention' in o or 'softmax' in o})
        print(f"| {name} | {', '.join(by)} | {len(operators)} | {kept / 1e9:.2f} |", flush=True)


if __name__ == '__main__':
    main()

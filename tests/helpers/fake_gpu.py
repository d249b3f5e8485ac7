"""A model on a GPU that is not there: shapes, dtypes and devices of everything, no numbers."""
from collections import defaultdict

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge


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


def gradients(outs, inputs, grad_outputs=None, allow_unused=False):
    """``torch.autograd.grad``, whose engine wants a driver: the nodes of the graph are called from here.

    As the engine does, it sums what was broadcast and casts what has another dtype, and fails at another device.
    """
    outs = [out for out in outs if out.requires_grad]
    grad_outputs = [torch.ones_like(out) for out in outs] if grad_outputs is None else grad_outputs
    edges = [get_gradient_edge(out) for out in outs]
    order, seen = [], set()
    stack = [(edge.node, False) for edge in edges]
    while stack:  # each node behind all that it leads to
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(after, False) for after, _ in node.next_functions if after is not None]
    arrived = defaultdict(dict)

    def add(node, place, grad):
        about = node._input_metadata[place]
        assert grad.device == about.device, (node, grad, about.device)
        grad = grad.sum_to_size(tuple(about.shape)).to(about.dtype)
        arrived[node][place] = arrived[node][place] + grad if place in arrived[node] else grad
    with torch.no_grad():
        for edge, grad in zip(edges, grad_outputs):
            add(edge.node, edge.output_nr, grad)
        for node in reversed(order):
            if not node.next_functions or node not in arrived:
                continue
            given = [arrived[node].get(i) for i in range(len(node._input_metadata))]
            results = node.apply(*given) if isinstance(node, BackwardCFunction) else node(*given)
            results = results if isinstance(results, tuple) else (results, )
            # Inputs that are no tensors lead nowhere: in our functions they come first, in mmcv's last.
            others = len(results) - len(node.next_functions)
            last = any(isinstance(result, torch.Tensor) for result in results[:others])
            results = results[:len(results) - others] if last else results[others:]
            for (after, place), grad in zip(node.next_functions, results):
                if after is not None and grad is not None:
                    add(after, place, grad)
    wanted = [get_gradient_edge(x) for x in inputs]
    grads = [arrived[edge.node].get(edge.output_nr) for edge in wanted]
    assert allow_unused or all(grad is not None for grad in grads)
    return tuple(grads)

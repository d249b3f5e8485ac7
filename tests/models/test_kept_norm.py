"""Norms of GELUs that keep no GELU: outputs, gradients and running averages are PyTorch's."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cmt_backbones.models.kept_norm import NormOfGELU, norm_of_gelu


@pytest.mark.parametrize('momentum', [.1, None])
@pytest.mark.parametrize('mode', ['train', 'eval', 'frozen'])
def test_it_is_the_norm_of_the_gelu(mode, momentum):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, momentum=momentum).double()
    nn.init.uniform_(norm.weight)
    norm.running_mean.normal_()
    norm.train(mode == 'train').requires_grad_(mode != 'frozen')
    reference, x = copy.deepcopy(norm), torch.randn(2, 6, 5, 4, dtype=torch.double, requires_grad=True)
    for _ in range(2):
        out, expected = norm_of_gelu(x, norm), reference(F.gelu(x))
        assert isinstance(out.grad_fn, torch.autograd.graph.Node) and NormOfGELU.__name__ in out.grad_fn.name()
        torch.testing.assert_close(out, expected)
    wanted = [x, *(() if mode == 'frozen' else norm.parameters())]
    theirs = [x, *(() if mode == 'frozen' else reference.parameters())]
    grad = torch.randn_like(out)
    for ours, plain in zip(torch.autograd.grad(out, wanted, grad, retain_graph=True),
                           torch.autograd.grad(expected, theirs, grad, retain_graph=True)):
        torch.testing.assert_close(ours, plain)
    first, = torch.autograd.grad(out, x, grad, create_graph=True)
    plain, = torch.autograd.grad(expected, x, grad, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(first.pow(2).sum(), x), torch.autograd.grad(plain.pow(2).sum(), x))
    for key, value in norm.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[key])


def test_nothing_as_large_is_kept_beside_its_input():
    kept = []
    norm, x = nn.BatchNorm2d(8).train(), torch.randn(2, 8, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        norm_of_gelu(x, norm)
    assert kept.count(x.numel()) == 1 and sum(kept) < 1.1 * x.numel()

"""torch.func takes both backbones, and derivatives of derivatives are right."""
import copy

import pytest
import torch
from torch.func import functional_call, grad, jvp, vjp, vmap

from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import attention
from cmt_backbones.models.cmt import IRFFN
from cmt_backbones.models.tracing import recomputing

CMT_ARCH = dict(stem_channels=4, embed_dims=(4, 8, 16, 32), depths=(1, 1, 1, 1), mlp_ratio=2, pretrain_img_size=64)
CONVNEXT_ARCH = dict(embed_dims=(4, 8, 16, 32), depths=(1, 1, 1, 1), use_grn=False)


def build(family, **kwargs):
    torch.manual_seed(0)
    return family(CMT_ARCH if family is CMT else CONVNEXT_ARCH, drop_path_rate=0., **kwargs)


def loss_of(model):
    def loss(parameters, buffers, x):
        return sum(out.square().mean() for out in functional_call(model, (parameters, buffers), (x, )))
    return loss


@pytest.mark.parametrize('small_attention', [2**18, 0])
@pytest.mark.parametrize('family, kwargs', [(CMT, {}), (CMT, dict(with_cp=True)), (CMT, dict(norm_eval=True)),
                                            (ConvNeXt, {})], ids=str)
def test_gradients_by_torch_func(family, kwargs, small_attention, monkeypatch):
    monkeypatch.setattr(attention, 'SMALL_ATTENTION', small_attention)
    model, x = build(family, **kwargs).double(), torch.randn(2, 3, 64, 96, dtype=torch.double)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    twin = copy.deepcopy(model)
    for training in (True, False):
        sum(out.square().mean() for out in twin.train(training)(x)).backward()
        if training:  # averages as inputs, since BatchNorm changes its own
            got = grad(loss_of(model.train()))(parameters, buffers, x)
        else:
            _, pull = vjp(lambda parameters: loss_of(model.eval())(parameters, buffers, x), parameters)
            got, = pull(torch.ones((), dtype=torch.double))
        for name, p in twin.named_parameters():
            assert torch.allclose(got[name], p.grad, rtol=1e-8, atol=1e-12), name
        twin.zero_grad()


@pytest.mark.parametrize('family', [CMT, ConvNeXt])
def test_gradients_of_each_sample(family):
    model = build(family).double().eval()  # BatchNorm in training mixes the samples
    parameters, images = dict(model.named_parameters()), torch.randn(3, 1, 3, 64, 96, dtype=torch.double)
    got = vmap(grad(loss_of(model)), in_dims=(None, None, 0))(parameters, dict(model.named_buffers()), images)
    for i, x in enumerate(images):
        model.zero_grad()
        sum(out.square().mean() for out in model(x)).backward()
        for name, p in model.named_parameters():
            assert (got[name][i] - p.grad).norm() < 1e-8 * p.grad.norm() + 1e-12, name


@pytest.mark.parametrize('training', [True, False])
def test_derivatives_of_the_ffn(training):
    ffn = IRFFN(2, 3, dict(type='BN')).double().train(training)
    for norm in (ffn.norm1, ffn.norm2, ffn.norm3):
        torch.nn.init.uniform_(norm.running_var, .5, 2.)
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 2, 3, 4, dtype=torch.double, requires_grad=True)
    inputs = (x, *ffn.parameters())

    def f(x, *parameters):
        return functional_call(ffn, dict(zip(dict(ffn.named_parameters()), parameters)), (x, ))
    assert torch.autograd.gradcheck(f, inputs) and torch.autograd.gradgradcheck(f, inputs)
    if training:
        return  # BatchNorm changes what is no input, which PyTorch's jvp refuses
    tangent = torch.randn_like(x)
    _, directional = jvp(lambda x: f(x, *ffn.parameters()), (x.detach(), ), (tangent, ))
    out = f(*inputs)
    probe = torch.randn_like(out)
    assert torch.allclose((directional * probe).sum(), (torch.autograd.grad(out, x, probe)[0] * tangent).sum())


@pytest.mark.parametrize('frozen', [(), ('norm1', 'norm2'), ('project', ), ('expand', 'norm1', 'dwconv')], ids=str)
@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize('momentum', [.1, None])
def test_the_ffn_is_what_it_would_be_with_everything_kept(frozen, dtype, momentum):
    torch.manual_seed(0)
    ffn = IRFFN(4, 8, dict(type='BN', momentum=momentum)).train()
    for name in frozen:
        getattr(ffn, name).requires_grad_(False)
    twin = copy.deepcopy(ffn)
    x = torch.randn(2, 4, 9, 7, requires_grad=True)
    grads = []
    for module in (ffn, twin):
        for _ in range(2):
            with torch.autocast('cpu', dtype, enabled=dtype is not None):
                # The plain operations are those of a block that is computed again as a whole.
                out = ffn(x) if module is ffn else recomputing(twin, x)
        inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
        grads.append([out, *torch.autograd.grad((out * torch.linspace(-1, 1, 63).view(9, 7)).sum(), inputs)])
    bound = 1e-5 if dtype is None else .05
    whole = max(want.norm() for want in grads[1][1:])
    for got, want in zip(*grads):
        assert got.dtype == want.dtype and (got - want).norm() < bound * (want.norm() + .1 * whole)
    for (name, buffer), want in zip(ffn.named_buffers(), twin.buffers()):
        assert torch.allclose(buffer, want, rtol=1e-4 if dtype is None else .02, atol=1e-4), name


def test_nothing_is_kept_without_a_gradient():
    """Frozen stages, under with_cp too, and evaluation."""
    kept = []
    model = build(CMT, frozen_stages=4, with_cp=True).train()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        outs = model(torch.randn(1, 3, 64, 96))
    assert not kept and not any(out.requires_grad for out in outs)

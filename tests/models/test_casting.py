"""Under autocast: weights that are cast together, and sums of two dtypes, are those of PyTorch's own operations."""
import pytest
import torch
from torch import nn

from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import backbone as shared
from cmt_backbones.models.backbone import DropPath, ScaledSum
from cmt_backbones.models.casting import CastTogether, Conv2d, call

CMT_ARCH = dict(stem_channels=8, embed_dims=(16, 24, 32, 40), depths=(1, 1, 1, 1), mlp_ratio=2, pretrain_img_size=64)
CONVNEXT_ARCH = dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), use_grn=False)


def trained(model, x):
    """Maps, and gradients of all parameters, after one forward and backward pass by bf16 autocast."""
    torch.manual_seed(1)  # of stochastic depth
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(x)
    model.zero_grad()
    sum(out.float().square().mean() for out in outs).backward()
    return [*outs, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('make', [lambda **kw: CMT(CMT_ARCH, drop_path_rate=.5, **kw),
                                  lambda **kw: ConvNeXt(CONVNEXT_ARCH, drop_path_rate=.5, **kw)],
                         ids=['CMT', 'ConvNeXt'])
def test_a_backbone_is_what_autocast_makes_it(make, with_cp, monkeypatch):
    torch.manual_seed(0)
    model, x = make(with_cp=with_cp).train(), torch.randn(2, 3, 64, 96)
    together = trained(model, x)
    casts = []
    monkeypatch.setattr(shared, 'call', lambda part, *inputs: casts.append(part) or part(*inputs))
    alone = trained(model, x)
    assert len(casts) >= 4 * (1 + with_cp)  # each block, and once more where it is computed again
    assert all(torch.equal(a, b) for a, b in zip(together, alone))
    assert all(layer.cast is None for layer in model.modules() if isinstance(layer, Conv2d))


def test_layers_are_as_they_were_after_an_error():
    layer = Conv2d(4, 4, 1)
    with torch.autocast('cpu', torch.bfloat16), pytest.raises(RuntimeError, match='channels'):
        call(layer, torch.randn(1, 5, 2, 2))
    assert layer.cast is None


def test_gradients_of_what_is_cast():
    weights = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True), torch.randn(2)]
    a, b, c = CastTogether.apply(torch.bfloat16, *weights)
    assert [x.dtype for x in (a, b, c)] == [torch.bfloat16] * 3 and torch.equal(b, weights[1].bfloat16())
    grad, = torch.autograd.grad(a.float().pow(3).sum(), weights[0], create_graph=True)
    second, = torch.autograd.grad(grad.sum(), weights[0])
    assert grad.dtype == torch.float32 and torch.equal(second, (6 * a.float()).bfloat16().float())


def test_stochastic_depth_on_a_shortcut_in_float32():
    torch.manual_seed(0)
    shortcut = torch.randn(64, 4, 3, 3, requires_grad=True)
    x = torch.randn(64, 4, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    out = DropPath(.25).train()(shortcut, x)
    scale = ((out - shortcut).flatten(1).abs().amax(1) > 0).float()[:, None, None, None] / .75
    assert out.dtype == torch.float32 and 0 < (scale == 0).sum() < 64
    torch.testing.assert_close(out, shortcut + x.float() * scale)
    grad = torch.randn_like(out)
    of_shortcut, of_x = torch.autograd.grad(out, (shortcut, x), grad)
    assert torch.equal(of_shortcut, grad) and torch.equal(of_x, (grad * scale).bfloat16())
    # Of a function of the sum, a second derivative goes through.
    of_x, = torch.autograd.grad(ScaledSum.apply(shortcut, x, scale).pow(2).sum(), x, create_graph=True)
    second, = torch.autograd.grad(of_x.sum(), shortcut)
    torch.testing.assert_close(second, (2 * scale).expand_as(second))


def test_the_copied_kernel_of_a_depthwise_convolution_is_not_the_parameter():
    """The shortcut is added to a copy: weights stay what they were, in float32 and under autocast."""
    torch.manual_seed(0)
    model = CMT(CMT_ARCH).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if 'weight' in k}
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            sum(out.float().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)
    assert isinstance(model.stages[0].blocks[0].ffn.project, nn.Conv2d)

"""The deployed form gives the same maps, and cannot be trained by mistake."""
import pytest
import torch
from torch import nn

from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import folding

CMT_ARCH = dict(stem_channels=4, embed_dims=(4, 8, 16, 32), depths=(1, 1, 2, 1), mlp_ratio=2,
                pretrain_img_size=64)
CONVNEXT_ARCH = dict(embed_dims=(4, 8, 16, 32), depths=(1, 1, 2, 1), use_grn=False)
ARCHS = [(CMT, CMT_ARCH), (CMT, 'tiny'), (ConvNeXt, CONVNEXT_ARCH),
         (ConvNeXt, dict(CONVNEXT_ARCH, use_grn=True)),
         (ConvNeXt, 'tiny')]


def varied(model):
    """Norms, biases and layer scales away from where they start, where folding does nothing."""
    for name, x in list(model.named_parameters()) + list(model.named_buffers()):
        if name.endswith('running_var'):
            x.data.uniform_(.5, 1.5)
        elif x.dim() == 1:
            x.data += .1 * torch.randn_like(x)
    return model.eval()


@pytest.mark.parametrize('family, arch', ARCHS, ids=str)
@torch.no_grad()
def test_same_outputs(family, arch):
    torch.manual_seed(0)
    model = varied(family(arch))
    images = [torch.randn(2, 3, *hw) for hw in [(64, 96), (64, 64), (70, 45)]]
    expected = [model(x) for x in images]
    assert model.switch_to_deploy() is model
    for x, outs in zip(images, expected):
        for out, want in zip(model(x), outs):
            assert (out - want).norm() < 1e-5 * want.norm()
    model.switch_to_deploy()  # twice is once
    assert (model(images[0])[-1] - expected[0][-1]).norm() < 1e-5 * expected[0][-1].norm()


@pytest.mark.parametrize('family, arch', ARCHS[::2], ids=str)
def test_what_is_folded_is_gone(family, arch):
    model = family(arch)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    model.switch_to_deploy()
    left = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    if family is CMT:  # two of the stem and the first of each IRFFN precede padding
        assert norms > left == 2 + sum(model.arch['depths'])
    else:
        blocks = [block for stage in model.stages for block in stage]
        assert all(block.gamma is None and block.norm.weight is None for block in blocks)


@pytest.mark.parametrize('family, arch', ARCHS[::2], ids=str)
def test_training_it_is_an_error(family, arch):
    model = nn.Sequential(family(arch).switch_to_deploy())
    model.eval()
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError,
                       match=f'this {family.__name__} was switched to its deployed form.*build it anew'):
        model.train()


def test_a_norm_does_not_fold_into_padding():
    with pytest.raises(ValueError, match='only into a convolution without padding'):
        folding.fold_norm_before(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1))


@pytest.mark.parametrize('deployed', [False, True])
@torch.no_grad()
def test_fuse_conv_bn_of_mmcv_changes_nothing(deployed):
    """It goes by the order of children, and a norm of CMT that stands behind a GELU folds into nothing."""
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    torch.manual_seed(0)
    model = varied(CMT(CMT_ARCH))
    order = list(model.state_dict())
    x = torch.randn(2, 3, 64, 96)
    expected = model(x)
    if deployed:
        model.switch_to_deploy()
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert fuse_conv_bn(model) is model
    left = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    behind_gelu = {f'stages.{i}.blocks.{j}.ffn.norm{n}' for i, depth in enumerate((1, 1, 2, 1)) for j in range(depth)
                   for n in ((1, ) if deployed else (1, 2))}
    behind_gelu |= {f'stem.layers.{i}' for i in ((2, 5) if deployed else (2, 5, 8))}
    assert set(left) == behind_gelu and (deployed or len(left) < norms)
    for out, want in zip(model(x), expected):
        assert (out - want).norm() < 1e-5 * want.norm()
    assert list(CMT(CMT_ARCH).state_dict()) == order and order[:2] == ['stem.layers.0.weight', 'stem.layers.0.bias']
    assert order.index('stages.0.blocks.0.ffn.expand.weight') < order.index('stages.0.blocks.0.ffn.norm1.weight')

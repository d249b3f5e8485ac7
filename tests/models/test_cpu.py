"""What a CPU computes in parts and by other kernels is what it computes at once."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import cpu
from cmt_backbones.models.casting import Conv2d

sides = st.integers(32, 110)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


@settings(max_examples=20)
@given(st.integers(1, 3), sides, sides, st.integers(9, 16))
@pytest.mark.parametrize('family, arch', [
    (CMT, dict(stem_channels=4, embed_dims=(4, 8, 16, 32), depths=(1, 1, 2, 1), mlp_ratio=3.6,
               pretrain_img_size=64)),
    (ConvNeXt, dict(embed_dims=(4, 8, 16, 32), depths=(1, 1, 2, 1), use_grn=False)),
    (ConvNeXt, dict(embed_dims=(4, 8, 16, 32), depths=(1, 1, 2, 1), use_grn=True)),
], ids=['CMT', 'ConvNeXt', 'ConvNeXt V2'])
def test_the_same_maps_in_bands_of_any_size(family, arch, images, height, width, band_size):
    model = family(arch).eval()
    x = torch.randn(images, 3, height, width)
    expected = [out.detach() for out in model(x)]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, 'BAND_SIZE', 2**band_size)
        patch.setattr('cmt_backbones.models.attention.SMALL_ATTENTION', 16)
        for out, want in zip(model(x), expected):
            assert out.is_contiguous() and relative_error(out, want) < 1e-5


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9),
       st.sampled_from([(1, 1), (3, 1), (2, 2), (6, 2)]), st.integers(0, 11))
def test_bands(images, height, width, halo_and_stride, band_size):
    """As many convolutions as the halo allows, the first with the stride, on rows of one column each."""
    halo, stride = halo_and_stride
    layers = [nn.Conv2d(2, 2, 3, stride, padding=1)]
    layers += [nn.Conv2d(2, 2, 3, padding=1) for _ in range(halo // stride - 1)]
    f = nn.Sequential(*layers)
    x = torch.randn(images, 2, height * stride, width * stride)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, 'BAND_SIZE', 2**band_size)
        assert relative_error(cpu.by_bands(f, x, widest=2, halo=halo, stride=stride), f(x)) < 1e-5


@torch.no_grad()
def test_bands_are_small():
    rows = []

    def f(x):
        rows.append(x.shape[0] * x.shape[2])
        return x

    x = torch.arange(2 * 600 * 100.).reshape(2, 1, 600, 100)
    assert torch.equal(cpu.by_bands(f, x, widest=256, halo=1), x)
    assert max(rows) * 100 * 256 <= cpu.BAND_SIZE * 1.1 and len(rows) == 2 * 8
    rows.clear()
    x = torch.arange(9 * 20 * 100.).reshape(9, 1, 20, 100)
    assert torch.equal(cpu.by_bands(f, x, widest=256, halo=1), x)
    assert rows == [80, 80, 20]  # several whole images at once


@pytest.mark.parametrize('shape', [(7, ), (1, 7), (4, 7), (2, 3, 7), (2, 3, 5, 7)], ids=str)
def test_linear(shape):
    layer, x = cpu.Linear(7, 3), torch.randn(shape, requires_grad=True)
    probe, inputs = torch.randn(*shape[:-1], 3), (x, layer.weight, layer.bias)
    out, expected = layer(x), F.linear(*inputs)
    assert out.shape == expected.shape and relative_error(out, expected) < 1e-6
    for got, want in zip(torch.autograd.grad((out * probe).sum(), inputs),
                         torch.autograd.grad((expected * probe).sum(), inputs)):
        assert relative_error(got, want) < 1e-6
    with torch.no_grad():
        assert relative_error(layer(x), expected) < 1e-6
        assert layer.double()(x.double()).dtype == torch.double


@torch.no_grad()
def test_batch_statistics_are_of_the_whole_batch(monkeypatch):
    """A forward in training mode without gradients, as for estimating BatchNorm's averages."""
    model = CMT(dict(stem_channels=4, embed_dims=(4, 8, 16, 32), depths=(1, 1, 1, 1), mlp_ratio=2,
                     pretrain_img_size=64), drop_path_rate=0.)
    x = torch.randn(2, 3, 64, 96)
    with torch.enable_grad():
        expected = [out.detach() for out in model(x)]
    monkeypatch.setattr(cpu, 'BAND_SIZE', 2**9)
    for out, want in zip(model(x), expected):
        assert relative_error(out, want) < 1e-5


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layer', [Conv2d(6, 9, 1), cpu.Linear(6, 9)], ids=['convolution', 'linear'])
def test_gelu_within_the_layer_before_it(layer, dtype):
    x = torch.randn(2, 5, 7, 6)
    x = x.permute(0, 3, 1, 2) if isinstance(layer, nn.Conv2d) else x
    expected = F.gelu(layer(x))
    with torch.no_grad(), torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        out = cpu.gelu_of(layer, x)
    assert out.dtype == dtype and out.shape == expected.shape and out.stride() == expected.stride()
    assert relative_error(out.float(), expected) < (1e-6 if dtype == torch.float32 else 1e-2)


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.sampled_from([1, 3, 7]),
       st.sampled_from([torch.channels_last, torch.contiguous_format]))
def test_gelu_within_a_depthwise_convolution(images, height, width, channels, kernel, memory_format):
    x = torch.randn(images, channels, height, width).to(memory_format=memory_format)
    weight, bias = torch.randn(channels, 1, kernel, kernel), torch.randn(channels)
    expected = F.gelu(F.conv2d(x, weight, bias, padding=kernel // 2, groups=channels))
    with torch.no_grad():
        out = cpu.gelu_of_convolution(x, weight, bias, kernel // 2, channels)
    assert (out - expected).abs().max() < 1e-5 * (1 + expected.abs().max())


@torch.no_grad()
def test_who_looks_at_layers_and_operations_sees_them():
    """Hooks are called, layers that somebody has put in the place of ours are, and FLOPs are counted."""
    model = ConvNeXt(dict(embed_dims=(4, 8, 16, 32), depths=(1, 1, 1, 1), use_grn=False)).eval()
    x, block = torch.randn(1, 3, 64, 64), model.stages[0][0]
    expected, seen = model(x), []
    hook = block.pwconv1.register_forward_hook(lambda module, args, out: seen.append(out))
    assert relative_error(model(x)[0], expected[0]) < 1e-6 and seen[0].shape == (1, 16, 16, 16)
    hook.remove()
    block.pwconv1, ours = nn.Linear(4, 16), block.pwconv1  # such as an adapter
    block.pwconv1.load_state_dict(ours.state_dict())
    assert relative_error(model(x)[0], expected[0]) < 1e-6
    with FlopCounterMode(display=False) as here:
        model(x)
    with FlopCounterMode(display=False) as elsewhere:
        model.to('meta')(x.to('meta'))
    assert here.get_total_flops() == elsewhere.get_total_flops() > 0


@pytest.mark.parametrize('kernel, stride, padding', [(7, 1, 3), (8, 8, 0)])
def test_depthwise_convolutions_are_trained_in_float32_on_cpus(kernel, stride, padding):
    """Where the gradient of the weights in bfloat16 takes many times as long."""
    layer = Conv2d(4, 4, kernel, stride, padding, groups=4)
    x = torch.randn(2, 4, 16, 24, requires_grad=True)
    results = []
    for amp in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            out = layer(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, layer.weight, layer.bias))))
    for got, want in zip(*results):
        assert torch.equal(got, want)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16

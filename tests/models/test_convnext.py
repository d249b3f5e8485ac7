"""ConvNeXt against the official numbers and timm, and what a detector may rely on."""
from itertools import combinations

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from mmcv.ops import roi_align
from mmengine.registry import MODELS

import golden_numbers
from cmt_backbones import ConvNeXt
from cmt_backbones.models import convnext

SMALL = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), use_grn=False)
SMALL_V2 = dict(SMALL, use_grn=True)
BOTH = pytest.mark.parametrize('arch', [SMALL, SMALL_V2], ids=['v1', 'v2'])


def filled(model, seed=1):
    """The model with weights of the golden formula, of which none is zero or one."""
    model.load_state_dict(golden_numbers.formula_state(model.state_dict(), seed))
    return model


def relative(mine, theirs):
    return ((mine.double() - theirs.double()).norm() / theirs.double().norm()).item()


# ---------------------------------------------------------------------------- the official model


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_outputs_and_gradients_are_the_official_ones(arch):
    golden = golden_numbers.load(f'convnext_{arch}')
    seed = int(golden['seed'])
    model = filled(ConvNeXt(arch), seed).eval()
    assert sum(p.numel() for p in model.parameters()) == golden['n_params']

    outs = model(golden_numbers.images(golden))
    for i, out in enumerate(outs):
        assert golden_numbers.error(golden, f'eval/{i}', out) < 1e-5
    golden_numbers.loss(outs, seed).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    held = {key.split('/')[1] for key in golden if key.startswith('grad/')}
    assert held and held <= set(grads)
    for key in held:
        assert golden_numbers.error(golden, f'grad/{key}', grads[key]) < 2e-5, key


@pytest.mark.parametrize('arch, millions', [('large', 196.23), ('xlarge', 348.15)])
def test_parameter_counts_of_the_large_ones(arch, millions, monkeypatch):
    # Weights without memory; the rates of the stochastic depth need some.
    monkeypatch.setattr(convnext, 'drop_path_rates', lambda rate, depths: [[0] * d for d in depths])
    with torch.device('meta'):
        count = sum(p.numel() for p in ConvNeXt(arch).parameters())
    assert round(count / 1e6, 2) == millions


def test_names_are_facebooks():
    names = set(ConvNeXt(SMALL).state_dict())
    block = {'gamma'} | {f'{part}.{kind}' for part in ('dwconv', 'norm', 'pwconv1', 'pwconv2')
                         for kind in ('weight', 'bias')}
    expected = {f'stages.{i}.{j}.{name}' for i, depth in enumerate(SMALL['depths'])
                for j in range(depth) for name in block}
    for kind in ('weight', 'bias'):
        expected |= {f'downsample_layers.{i}.{j}.{kind}' for i in range(4) for j in range(2)}
        expected |= {f'norm{i}.{kind}' for i in range(4)}
    assert names == expected

    without = {name for name in expected if not name.endswith('gamma')}
    assert set(ConvNeXt(SMALL, layer_scale_init_value=0).state_dict()) == without
    assert set(ConvNeXt(SMALL_V2).state_dict()) == without | {
        f'stages.{i}.{j}.grn.{name}' for i, depth in enumerate(SMALL['depths'])
        for j in range(depth) for name in ('gamma', 'beta')}


@BOTH
def test_norms_have_the_official_epsilon(arch):
    # It shows on nearly constant pixels alone, which no golden number has.
    norms = [m for m in ConvNeXt(arch).modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 4 + 5 + 4 and {norm.eps for norm in norms} == {1e-6}


def test_initialisation_is_the_official_one():
    for name, p in ConvNeXt('v2_atto').named_parameters():
        if p.dim() > 1:
            assert abs(p.std().item() - .02) < .004 and p.abs().max() <= 2, name
        else:
            is_scale = name.endswith('weight')  # of a LayerNorm
            assert (p == (1 if is_scale else 0)).all(), name
    assert (ConvNeXt(SMALL, layer_scale_init_value=.5).stages[0][0].gamma == .5).all()


# ---------------------------------------------------------------------------- timm


@pytest.mark.parametrize('name, arch', [('convnext_tiny', 'tiny'), ('convnextv2_atto', 'v2_atto'),
                                        ('convnextv2_tiny', 'v2_tiny')])
def test_computes_what_timm_computes(name, arch, tmp_path):
    # atto has 1x1 convolutions in timm, tiny matrices.
    torch.manual_seed(0)
    other = filled(timm.create_model(name, pretrained=False)).eval()
    path = str(tmp_path / 'timm.pth')
    torch.save(other.state_dict(), path)
    ours = ConvNeXt(arch, init_cfg=dict(type='Pretrained', checkpoint=path)).eval()
    ours.init_weights()

    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        raw = other.forward_intermediates(x, intermediates_only=True)
        outs = ours(x)
    assert len(raw) == len(outs) == 4
    for out, theirs in zip(outs, raw):  # timm has no output norms; ours are still at 1 and 0
        theirs = F.layer_norm(theirs.permute(0, 2, 3, 1), theirs.shape[1:2], eps=1e-6)
        assert relative(out, theirs.permute(0, 3, 1, 2)) < 1e-5


@pytest.mark.parametrize('arch', convnext.ARCHS)
def test_arch_has_the_settings_of_timms(arch):
    name = f'convnext{arch}' if arch.startswith('v2_') else f'convnext_{arch}'
    with torch.device('meta'):
        stages = timm.create_model(name, pretrained=False).stages
    ours = convnext.ARCHS[arch]
    assert ours['depths'] == tuple(len(stage.blocks) for stage in stages)
    assert ours['embed_dims'] == tuple(stage.blocks[0].conv_dw.in_channels for stage in stages)
    assert ours['use_grn'] == any('grn' in key for key in stages.state_dict())


# ---------------------------------------------------------------------------- the contract


def test_builds_from_every_registry_scope():
    model = MODELS.build(dict(type='ConvNeXt', arch=SMALL, out_indices=[1, 2, 3]))
    assert isinstance(model, ConvNeXt) and model.out_indices == (1, 2, 3)


@settings(max_examples=12, deadline=None)
@given(height=st.integers(32, 200), width=st.integers(32, 200))
def test_any_size_gives_the_maps_of_the_padded_image(height, width):
    model = filled(ConvNeXt(SMALL)).eval()
    x = torch.randn(1, 3, height, width)
    padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    padded[..., :height, :width] = x
    with torch.no_grad():
        outs, whole = model(x), model(padded)
    for i, stride in enumerate((4, 8, 16, 32)):
        h, w = -(-height // stride), -(-width // stride)
        assert outs[i].shape == (1, SMALL['embed_dims'][i], h, w)
        assert outs[i].is_contiguous()
        torch.testing.assert_close(outs[i], whole[i][..., :h, :w], rtol=0, atol=1e-5)


@BOTH
@pytest.mark.parametrize('size', [(64, 96), (50, 70), (32, 32)])
def test_outputs_are_contiguous_whatever_comes_in(arch, size):
    model = filled(ConvNeXt(arch)).eval()
    x = torch.randn(2, 3, *size)
    expected = model(x)
    for layout in (x.contiguous(memory_format=torch.channels_last),
                   x.transpose(2, 3).contiguous().transpose(2, 3)):
        for out, same in zip(model(layout), expected):
            assert out.is_contiguous() and same.is_contiguous()
            torch.testing.assert_close(out, same)
    for out, same in zip(model.to(memory_format=torch.channels_last)(x), expected):
        assert out.is_contiguous()
        torch.testing.assert_close(out, same)


def test_roi_align_reads_the_outputs_rightly():
    out = filled(ConvNeXt(SMALL)).eval()(torch.randn(1, 3, 96, 128))[1]
    rois = torch.tensor([[0., 8., 8., 90., 70.], [0., 30., 2., 60., 95.]])
    aligned = roi_align(out, rois, (7, 7), 1 / 8)
    # A fresh copy: .contiguous() gives the same memory, wrong or right.
    copy = torch.from_numpy(out.detach().numpy().copy(order='C'))
    torch.testing.assert_close(aligned, roi_align(copy, rois, (7, 7), 1 / 8))
    torch.testing.assert_close(aligned, roi_align(out.contiguous(), rois, (7, 7), 1 / 8))


@BOTH
@pytest.mark.parametrize('out_indices', [c for n in range(1, 5) for c in combinations(range(4), n)],
                         ids=str)
def test_every_parameter_gets_a_gradient(arch, out_indices):
    model = filled(ConvNeXt(arch, out_indices))
    outs = model(torch.randn(1, 3, 64, 64))
    assert [out.shape[1] for out in outs] == [SMALL['embed_dims'][i] for i in out_indices]
    sum(out.square().sum() for out in outs).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert {n for n, _ in model.named_children() if n.startswith('norm')} == {
        f'norm{i}' for i in out_indices}


def part_of(name):
    """0 for the stem, k for the k-th stage."""
    kind, *rest = name.split('.')
    if kind.startswith('norm'):
        return int(kind[-1]) + 1
    return int(rest[0]) + (kind == 'stages' or rest[0] != '0')


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), (3, )], ids=str)
@pytest.mark.parametrize('frozen', range(-1, 5))
def test_frozen_parts_stay_frozen_and_the_others_train(frozen, out_indices):
    model = filled(ConvNeXt(SMALL, out_indices, drop_path_rate=.5, frozen_stages=frozen))
    for _ in range(2):  # a training loop calls train() after each validation
        model.eval()
        assert model.train() is model
        for name, p in model.named_parameters():
            assert p.requires_grad == (part_of(name) > frozen), name
        for name, module in model.named_modules():
            if name.startswith(('downsample_layers.', 'stages.', 'norm')):
                assert module.training == (part_of(name) > frozen), name
    outs = model(torch.randn(1, 3, 64, 64))
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained:
        sum(out.square().sum() for out in outs).backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@BOTH
def test_checkpointing_changes_nothing(arch):
    x = torch.randn(2, 3, 64, 64)
    results, calls = [], []
    for with_cp in (False, True):
        model = filled(ConvNeXt(arch, drop_path_rate=.5, with_cp=with_cp)).train()
        ran = []
        model.stages[2][1].dwconv.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        torch.manual_seed(3)  # of the dropped paths
        outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        results.append([*outs, *(p.grad for p in model.parameters())])
        calls.append(len(ran))
    assert calls == [1, 2]  # once more in the backward pass
    for plain, checkpointed in zip(*results):
        torch.testing.assert_close(checkpointed, plain)


def test_drop_path_drops_whole_branches_in_training_only():
    model = filled(ConvNeXt(SMALL, drop_path_rate=.9))
    x = torch.randn(1, 3, 64, 64)
    assert [block.drop_path.rate for stage in model.stages for block in stage] == pytest.approx(
        [0, .225, .45, .675, .9])
    torch.testing.assert_close(model.eval()(x), filled(ConvNeXt(SMALL)).eval()(x))
    torch.manual_seed(0)
    assert relative(model.train()(x)[3], model(x)[3]) > .1


@BOTH
def test_half_precision_holds_activations_of_a_hundred(arch):
    # The official norms square by hand, and their outputs collapse to 0 here (ConvNeXt#80).
    model = filled(ConvNeXt(arch)).eval()
    with torch.no_grad():
        for i in range(4):
            norm = model.downsample_layers[i][1 if i == 0 else 0]
            norm.weight *= 100
        x = torch.randn(1, 3, 96, 96)
        exact = model(x)
        assert model.downsample_layers[0](x).abs().max() > 100
        for out, expected in zip(model.half()(x.half()), exact):
            assert out.dtype == torch.half and out.isfinite().all()
            assert relative(out, expected) < 1e-2


def test_response_normalisation_of_a_large_map_holds_in_half_precision():
    grn = filled(convnext.GRN(8)).eval()
    x = 1000 * torch.randn(1, 128, 128, 8)  # the norm of a channel is 1.3e5, fp16 ends at 6.6e4
    out = grn.half()(x.half())
    assert out.isfinite().all()
    assert relative(out, grn.float()(x)) < 2e-3
    assert grn.double()(x.double()).dtype == torch.double


def test_blocks_add_in_float32_under_autocast():
    """As the official ones do, in which the layer scale's product is in float32."""
    model, dtypes = ConvNeXt(SMALL, drop_path_rate=.5).train(), []
    for block in (block for stage in model.stages for block in stage):
        block.register_forward_hook(lambda block, args, out: dtypes.append(out.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        model(torch.randn(2, 3, 64, 64))
    assert dtypes == [torch.float32] * 5


@BOTH
def test_autocast_trains(arch):
    model = filled(ConvNeXt(arch))
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(torch.randn(1, 3, 64, 64))
    sum(out.float().square().mean() for out in outs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize('settings, message', [
    (dict(arch='medium'), r"arch must be one of \['base', .*'xlarge'\], or a dict with the keys "
     r"\['depths', 'embed_dims', 'use_grn'\]; it is 'medium'"),
    (dict(arch=dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))),
     r"a dict without \['embed_dims', 'use_grn'\] and with unknown \['dims'\]"),
    (dict(arch=dict(SMALL, depths=(1, 1, 2))),
     r"arch\['depths'\] must be 4 positive numbers, not \(1, 1, 2\)"),
    (dict(arch=dict(SMALL, embed_dims=(8, 0, 8, 8))),
     r"arch\['embed_dims'\] must be 4 positive numbers, not \(8, 0, 8, 8\)"),
    (dict(out_indices=(3, 1)), 'out_indices must be ascending stage numbers from 0 to 3'),
    (dict(out_indices=()), 'out_indices must be ascending stage numbers from 0 to 3'),
    (dict(out_indices=(4, )), 'out_indices must be ascending stage numbers from 0 to 3'),
    (dict(frozen_stages=5), 'frozen_stages must be -1 .* not 5'),
    (dict(drop_path_rate=1.), r'drop_path_rate must be in \[0, 1\), not 1.0'),
])
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        ConvNeXt(**{'arch': SMALL, **settings})


@pytest.mark.parametrize('shape, message', [
    ((1, 1, 64, 64), r'expected images of shape \(N, 3, H, W\), got \(1, 1, 64, 64\)'),
    ((3, 64, 64), r'expected images of shape \(N, 3, H, W\), got \(3, 64, 64\)'),
    ((1, 3, 31, 64), r'at least 32 pixels high and wide.* got 31x64 \(HxW\)'),
])
def test_refuses_images_that_cannot_be(shape, message):
    with pytest.raises(ValueError, match=message):
        ConvNeXt(SMALL)(torch.zeros(shape))

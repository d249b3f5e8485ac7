"""CMT against the official numbers, and what a detector may rely on."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

import golden_numbers
from cmt_backbones import CMT
from cmt_backbones.models import attention, irffn, kept_norm
from cmt_backbones.models.tracing import is_recomputed
from cmt_backbones.weights import convert
from layouts import official_cmt

GOLDEN = {'tiny': 'cmt_ti_160', 'xsmall': 'cmt_xs_192', 'small': 'cmt_s_224', 'base': 'cmt_b_256'}
RESIZED = {'tiny': 'cmt_ti_160_at_192x320', 'small': 'cmt_s_224_at_96x160'}
CASES = [*GOLDEN.items(), *RESIZED.items()]


def golden_model(arch, golden):
    model = CMT(arch, drop_path_rate=0)
    state = golden_numbers.formula_state(official_cmt(model.state_dict()), int(golden['seed']))
    model.load_state_dict(convert(state)[0])
    return model


@pytest.mark.parametrize('arch, name, small_attention', [
    *((arch, name, 2**18) for arch, name in CASES),
    *((arch, name, 0) for arch, name in RESIZED.items()),  # attention by queries, as for large images
], ids=str)
def test_outputs_and_gradients_are_the_official_ones(arch, name, small_attention, monkeypatch):
    monkeypatch.setattr(attention, 'SMALL_ATTENTION', small_attention)
    golden = golden_numbers.load(name)
    seed, x = int(golden['seed']), golden_numbers.images(golden)
    model = golden_model(arch, golden)
    assert sum(p.numel() for p in model.parameters()) == golden['n_params']

    with torch.no_grad():
        for i, out in enumerate(model.eval()(x)):
            assert golden_numbers.error(golden, f'eval/{i}', out) < 1e-5
    if 'train/0/val' not in golden:
        return
    outs = model.train()(x)
    for i, out in enumerate(outs):
        assert golden_numbers.error(golden, f'train/{i}', out) < 1e-5
    golden_numbers.loss(outs, seed).backward()
    grads = official_cmt({k: p.grad for k, p in model.named_parameters()})
    held = {key.split('/')[1] for key in golden if key.startswith('grad/')}
    assert held and held <= set(grads)
    for key in held:
        assert golden_numbers.error(golden, f'grad/{key}', grads[key]) < 2e-5, key


SMALL = dict(stem_channels=4, embed_dims=(4, 8, 16, 32), depths=(1, 1, 2, 1), mlp_ratio=2,
             pretrain_img_size=64)
sizes = st.integers(32, 400)
all_out_indices = [c for k in range(1, 5) for c in itertools.combinations(range(4), k)]


def small(**kwargs):
    torch.manual_seed(0)
    return CMT(SMALL, **kwargs)


@settings(max_examples=40)
@given(sizes, sizes, st.sampled_from(all_out_indices), st.sampled_from(['geometric', 'flat']))
def test_any_size_gives_maps_at_the_strides(height, width, out_indices, interpolation):
    model = small(out_indices=out_indices, bias_interpolation=interpolation).eval()
    x = torch.randn(1, 3, height, width)
    with torch.no_grad():
        outs = model(x)
        padded = model(F.pad(x, (0, -width % 32, 0, -height % 32)))
    assert len(outs) == len(out_indices)
    for i, out, whole in zip(out_indices, outs, padded):
        stride = (4, 8, 16, 32)[i]
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        assert out.shape == (1, SMALL['embed_dims'][i], rows, columns)
        assert out.is_contiguous() and out.isfinite().all()
        assert torch.equal(out, whole[..., :rows, :columns])


@settings(max_examples=15)
@given(st.integers(1, 5), sizes, sizes)
def test_an_image_does_not_depend_on_its_batch(batch, height, width):
    model, x = small().eval(), torch.randn(batch, 3, height // 2 + 32, width // 2 + 32)
    with torch.no_grad():
        for together, alone in zip(model(x), zip(*(model(image[None]) for image in x))):
            assert (together - torch.cat(alone)).norm() < 1e-5 * together.norm()


@settings(max_examples=15)
@given(sizes, sizes, sizes, sizes)
def test_nothing_is_kept_between_forwards(h1, w1, h2, w2):
    model, a, b = small().eval(), torch.randn(1, 3, h1, w1), torch.randn(1, 3, h2, w2)
    with torch.no_grad():
        first, _, second = model(a), model(b), model(a)
    assert all(torch.equal(x, y) for x, y in zip(first, second))


@pytest.mark.parametrize('out_indices', all_out_indices)
def test_every_parameter_gets_a_gradient(out_indices):
    model = small(out_indices=out_indices)
    whole = small()
    x = torch.randn(2, 3, 70, 90)
    outs = model(x)
    sum(out.square().sum() for out in outs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # and the maps are those of the whole backbone
    state = {k: v for k, v in whole.state_dict().items() if k in model.state_dict()}
    model.load_state_dict(state)
    with torch.no_grad():
        expected = whole.eval()(x)
        assert all(torch.equal(out, expected[i]) for out, i in zip(model.eval()(x), out_indices))


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_parts_stay_frozen(frozen_stages):
    model = small(frozen_stages=frozen_stages, drop_path_rate=0).train()
    frozen = [model.stem, *model.stages][:frozen_stages + 1]
    trained = [model.stem, *model.stages][frozen_stages + 1:]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = sum(out.square().sum() for out in model(torch.randn(2, 3, 64, 64)))
    if trained:
        out.backward()
    for part in frozen:
        assert not any(m.training for m in part.modules())
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    for part in trained:
        assert all(m.training for m in part.modules())
        assert all(p.grad is not None for p in part.parameters())
    names = {id(buffer): name for name, buffer in model.named_buffers()}
    for part, moved in [(p, False) for p in frozen] + [(p, True) for p in trained]:
        for buffer in part.buffers():
            changed = not torch.equal(buffer, before[names[id(buffer)]])
            assert changed == moved, names[id(buffer)]


def step(model, x):
    torch.manual_seed(1)  # drop path
    outs = model(x)
    sum(out.square().mean() for out in outs).backward()
    return outs, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('small_attention', [2**18, 0])
@pytest.mark.parametrize('kwargs', [{}, dict(drop_path_rate=.5), dict(norm_eval=True), dict(frozen_stages=2)],
                         ids=str)
def test_checkpointing_changes_nothing(kwargs, small_attention, monkeypatch):
    monkeypatch.setattr(attention, 'SMALL_ATTENTION', small_attention)
    x = torch.randn(2, 3, 64, 96)
    plain, checkpointed = small(**kwargs), small(**kwargs, with_cp=True)
    (outs, grads), (outs_cp, grads_cp) = step(plain.train(), x), step(checkpointed.train(), x)
    assert all(torch.equal(a, b) for a, b in zip(outs, outs_cp))
    assert grads.keys() == grads_cp.keys()
    whole = torch.stack([grad.norm() for grad in grads.values()]).norm()
    assert all((grads[k] - grads_cp[k]).norm() < 1e-5 * (grads[k].norm() + .1 * whole) for k in grads)
    state, state_cp = plain.state_dict(), checkpointed.state_dict()
    assert all(torch.equal(state[k], state_cp[k]) for k in state)  # running averages count a batch once


@pytest.mark.parametrize('with_cp', [False, True])
def test_several_forwards_before_a_backward(with_cp):
    """As of students and siamese networks; and a backward pass for each output."""
    one, other = small(drop_path_rate=0, with_cp=with_cp).double(), small(drop_path_rate=0).double()
    images = torch.randn(2, 2, 3, 64, 96, dtype=torch.double)
    losses = [sum(out.square().mean() for out in one(x)) for x in images]
    sum(losses).backward()
    for x in images:
        for out in (outs := other(x)):
            out.square().mean().backward(retain_graph=out is not outs[-1])
    for p, q in zip(one.parameters(), other.parameters()):
        assert torch.allclose(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers()))


class Convolutions(TorchDispatchMode):
    """The shapes of the kernels of all convolutions that were computed."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.kernels.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


def test_the_ffn_keeps_one_wide_map_and_computes_no_product_twice():
    ffn, kept = CMT(SMALL).train().stages[0].blocks[0].ffn, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        out = ffn(torch.randn(2, 4, 16, 16))
    assert kept.count((2, 8, 16, 16)) == 1
    with Convolutions() as computed:
        out.sum().backward()
    assert computed.kernels == [(8, 1, 3, 3)]


def test_checkpointing_computes_the_stem_again():
    out = small(with_cp=True, out_indices=(0, )).train()(torch.randn(2, 3, 64, 64))[0]
    with Convolutions() as computed:
        out.sum().backward()
    assert computed.kernels[-3:] == [(4, 3, 3, 3), (4, 4, 3, 3), (4, 4, 3, 3)]


def test_nothing_is_kept_by_hand_within_what_is_computed_again(monkeypatch):
    calls = []
    for function in (irffn.BetweenProducts, kept_norm.NormOfGELU):
        apply = function.apply
        monkeypatch.setattr(function, 'apply', lambda *args, apply=apply: calls.append(args) or apply(*args))
    for with_cp, expected in ((False, 3 + 5), (True, 0)):
        calls.clear()
        outs = small(with_cp=with_cp).train()(torch.randn(2, 3, 64, 64))
        sum(out.sum() for out in outs).backward()
        assert len(calls) == expected
    assert not is_recomputed()


def test_norm_options():
    model = small(norm_cfg=dict(type='SyncBN', momentum=.01))
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms and all(isinstance(m, torch.nn.SyncBatchNorm) and m.momentum == .01 for m in norms)
    model = small(norm_cfg=dict(type='BN', requires_grad=False))
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms and not any(p.requires_grad for m in norms for p in m.parameters())
    model = small(norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms and not any(m.training for m in norms) and model.training


def test_channels_last_and_other_layouts_give_the_same():
    model, x = small().eval(), torch.randn(2, 3, 66, 100)
    with torch.no_grad():
        for other in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
            for a, b in zip(model(x), model(other)):
                assert torch.equal(a, b) and b.is_contiguous()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_close(dtype):
    model, x = small(drop_path_rate=0), torch.randn(2, 3, 96, 160)
    expected = model(x)
    with torch.autocast('cpu', dtype=dtype):
        outs = model(x)
        sum(out.float().square().mean() for out in outs).backward()
    for out, want in zip(outs, expected):
        assert (out - want).norm() / want.norm() < (0.1 if dtype == torch.bfloat16 else 0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch='huge'), r"arch must be one of \['base', 'small', 'tiny', 'xsmall'\].*'huge'"),
    (dict(arch=dict(SMALL, deep=1)), r"unknown \['deep'\]"),
    (dict(arch={}), r"a dict without \['depths', 'embed_dims'"),
    (dict(arch=dict(SMALL, embed_dims=(4, 9, 16, 32))), r'divide by their heads \(1, 2, 4, 8\)'),
    (dict(arch=dict(SMALL, depths=(1, 1, 1))), '4 numbers of blocks'),
    (dict(arch=dict(SMALL, pretrain_img_size=100)), 'multiple of 32, not 100'),
    (dict(out_indices=()), r'out_indices must be ascending stage numbers from 0 to 3'),
    (dict(out_indices=(0, 4)), r'not \(0, 4\)'),
    (dict(out_indices=(2, 1)), r'not \(2, 1\)'),
    (dict(out_indices=(-1, )), r'not \(-1,\)'),
    (dict(out_indices=3), 'not 3'),
    (dict(frozen_stages=5), 'frozen_stages must be -1.*not 5'),
    (dict(norm_cfg=dict(type='GN')), r"must be 'BN' or 'SyncBN', not 'GN'"),
    (dict(drop_path_rate=1.), r'must be in \[0, 1\), not 1.0'),
    (dict(bias_interpolation='bilinear'), "'geometric' or 'flat'"),
])
def test_impossible_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CMT(**{'arch': SMALL, **kwargs})


@pytest.mark.parametrize('shape, message', [
    ((1, 3, 31, 64), r'at least 32 pixels.*got 31x64'),
    ((1, 3, 64, 8), r'got 64x8'),
    ((1, 4, 64, 64), r'shape \(N, 3, H, W\), got \(1, 4, 64, 64\)'),
    ((3, 64, 64), r'got \(3, 64, 64\)'),
])
def test_impossible_images(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


def test_other_scopes_find_it():
    import mmdet.registry
    import mmseg.registry
    for registry in (mmdet.registry.MODELS, mmseg.registry.MODELS):
        model = registry.build(dict(type='CMT', arch='tiny', out_indices=(1, 2)))
        assert isinstance(model, CMT) and len(model.stages) == 3

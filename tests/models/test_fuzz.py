"""Options and sizes drawn at random: a backbone that works, or an error that says what was expected."""
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

import cmt_backbones
from cmt_backbones import CMT, ConvNeXt

PACKAGE = Path(cmt_backbones.__file__).parent
CASES = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])

# What people write by mistake, of every type that a config can hold.
WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 7), st.floats(), st.text(max_size=3), st.binary(max_size=2),
    st.lists(st.one_of(st.integers(-2, 5), st.floats(), st.text(max_size=1)), max_size=5),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), st.integers(), max_size=2))
OUT_INDICES = st.sets(st.integers(0, 3), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
DEPTHS = st.lists(st.integers(1, 2), min_size=4, max_size=4)
SHARED = dict(
    out_indices=OUT_INDICES, drop_path_rate=st.floats(0, .9), frozen_stages=st.integers(-1, 4),
    with_cp=st.booleans(),
    init_cfg=st.sampled_from([None, dict(type='Normal', layer='Conv2d', std=.01)]))
CMT_OPTIONS = dict(
    SHARED,
    arch=st.fixed_dictionaries(dict(
        stem_channels=st.integers(1, 6), depths=DEPTHS, mlp_ratio=st.floats(1, 4) | st.integers(1, 4),
        embed_dims=st.lists(st.integers(1, 2), min_size=4, max_size=4).map(
            lambda widths: [8 * width for width in widths]),
        pretrain_img_size=st.sampled_from([32, 64]))),
    bias_interpolation=st.sampled_from(['geometric', 'flat']), norm_eval=st.booleans(),
    norm_cfg=st.fixed_dictionaries(
        dict(type=st.just('BN')),
        optional=dict(requires_grad=st.booleans(), eps=st.floats(1e-6, 1e-2),
                      momentum=st.none() | st.floats(0, 1))))
CONVNEXT_OPTIONS = dict(
    SHARED,
    arch=st.fixed_dictionaries(dict(
        embed_dims=st.lists(st.integers(1, 9), min_size=4, max_size=4), depths=DEPTHS,
        use_grn=st.booleans())),
    layer_scale_init_value=st.floats(0, 10) | st.integers(0, 1))
BACKBONES = [(CMT, CMT_OPTIONS), (ConvNeXt, CONVNEXT_OPTIONS)]


@pytest.fixture(autouse=True)
def one_thread():
    """Arrays as small as these take more than twice as long on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(valid):
    """Any of the valid options, each of them left out at times, but never the small arch."""
    rest = {name: values for name, values in valid.items() if name != 'arch'}
    return st.fixed_dictionaries(dict(arch=valid['arch']), optional=rest)


def assert_ours(error):
    """An error raised in our files, in words: neither PyTorch's nor Python's own."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert PACKAGE in Path(last.filename).parents, f'{last.filename}:{last.lineno}: {error}'
    assert last.line.startswith(('raise ', 'f', "'")), f'{last.line}: {error}'
    assert len(str(error)) > 20


def assert_works(backbone, size, batch, training):
    """Shapes and finite values, and a gradient for everything that is not frozen."""
    height, width = size
    torch.manual_seed(0)
    images = torch.randn(batch, 3, height, width)
    outs = backbone.train(training)(images)
    assert [tuple(out.shape) for out in outs] == [
        (batch, backbone.embed_dims[i], -(-height // 4 // 2**i), -(-width // 4 // 2**i))
        for i in backbone.out_indices]
    assert all(out.isfinite().all() and out.is_contiguous() for out in outs)
    if any(out.requires_grad for out in outs):
        sum(out.mean() for out in outs if out.requires_grad).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


SIZES = st.tuples(st.integers(32, 80), st.integers(32, 80))


@pytest.mark.parametrize('kind, valid', BACKBONES, ids=['CMT', 'ConvNeXt'])
def test_valid_options(kind, valid):

    @CASES
    @given(options(valid), SIZES, st.integers(1, 2), st.booleans())
    def build_and_call(chosen, size, batch, training):
        backbone = kind(**chosen)
        backbone.init_weights()
        try:
            assert_works(backbone, size, batch, training)
        except ValueError as error:
            assert_ours(error)
            assert batch == 1 and size == (32, 32) and training and 'no variance' in str(error)

    build_and_call()


@pytest.mark.parametrize('kind, valid', BACKBONES, ids=['CMT', 'ConvNeXt'])
def test_one_wrong_option(kind, valid):

    @CASES
    @given(options(valid), st.data())
    def build_and_call(chosen, data):
        name = data.draw(st.sampled_from(sorted(valid)))
        wrong = data.draw(WRONG)
        if name in ('arch', 'norm_cfg') and data.draw(st.booleans()):  # right but for one key
            inner = data.draw(valid[name])
            wrong = dict(inner, **{data.draw(st.sampled_from([*sorted(inner), 'unknown'])): wrong})
        try:
            backbone = kind(**dict(chosen, **{name: wrong}))
        except (ValueError, TypeError) as error:
            return assert_ours(error)
        assert_works(backbone, (33, 40), 2, True)  # it was not wrong at all

    build_and_call()


@pytest.mark.parametrize('kind, valid', BACKBONES, ids=['CMT', 'ConvNeXt'])
def test_images_of_any_shape_and_type(kind, valid):
    small = dict(embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    rest = dict(stem_channels=4, mlp_ratio=2, pretrain_img_size=32) if kind is CMT else dict(use_grn=True)
    backbone = kind(arch=dict(small, **rest))

    @settings(CASES, max_examples=100)
    @given(st.lists(st.integers(0, 40), max_size=5),
           st.sampled_from([torch.float32, torch.uint8, torch.int64, None]))
    def call(shape, dtype):
        images = torch.zeros(shape, dtype=dtype) if dtype else None
        try:
            outs = backbone(images)
        except (ValueError, TypeError) as error:
            return assert_ours(error)
        assert shape[0] > 0 and shape[1] == 3 and min(shape[2:]) >= 32 and dtype == torch.float32
        assert all(out.isfinite().all() for out in outs)

    call()

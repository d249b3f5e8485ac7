"""Layer decay against the official rules, mmdet's constructor, and models of many shapes."""
import logging

import pytest
import torch
import torch.distributed as dist
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from cmt_backbones import CMT, ConvNeXt, LayerDecayOptimWrapperConstructor
from cmt_backbones.models import cmt, convnext
from cmt_backbones.models.layer_numbers import convnext_layer_of, convnext_num_layers

LR, WD = 2e-4, .05
CONVNEXT = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 4, 1), use_grn=False)
CMT_ARCH = dict(stem_channels=4, embed_dims=(8, 16, 32, 64), depths=(1, 1, 4, 1), mlp_ratio=2,
                pretrain_img_size=64)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.tensor(1.))  # as mmcv's Scale


class Detector(nn.Module):
    """Our backbones at the names given, and a head."""

    def __init__(self, **backbones):
        super().__init__()
        for name, backbone in backbones.items():
            self.add_module(name, backbone)
        self.head = Head()

    def forward(self, x):
        return x


def meta(build, *args, **kwargs):
    """A model without weights: only names and shapes matter here."""
    with pytest.MonkeyPatch.context() as patch, torch.device('meta'):
        for module in (cmt, convnext):
            patch.setattr(module, 'drop_path_rates', lambda rate, depths: [[0] * d for d in depths])
        return build(*args, **kwargs)


def settings(model, optimizer=None, wrapper='OptimWrapper', **paramwise):
    """(lr, weight_decay) of each trainable parameter by name; checks that each is in one group."""
    optim = build_optim_wrapper(model, dict(
        type=wrapper, optimizer=optimizer or dict(type='AdamW', lr=LR, weight_decay=WD),
        constructor='LayerDecayOptimWrapperConstructor', paramwise_cfg=paramwise))
    return by_name(model, optim.optimizer.param_groups)


def by_name(model, groups):
    names = {p: name for name, p in model.named_parameters()}
    found = [(names[p], (group['lr'], group['weight_decay'])) for group in groups
             for p in group['params']]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(name for name, _ in found) == sorted(trained)
    return dict(found)


def lrs(model, **paramwise):
    """The learning rate of each parameter over the optimizer's."""
    return {name: lr / LR for name, (lr, _) in settings(model, **paramwise).items()}


# ---------------------------------------------------------------------------- ConvNeXt


def official_scale(name, rate, layers, decay_type):
    """The official rule written down again, from its description: rate ** (N + 2 - id - 1)."""
    parts = name.split('.')
    if parts[0] != 'backbone' or parts[1] not in ('downsample_layers', 'stages'):
        return 1.
    place = (parts[1], int(parts[2]))
    if decay_type == 'layer_wise':
        ids = {('downsample_layers', 0): 0, ('stages', 0): 1,
               ('downsample_layers', 1): 2, ('stages', 1): 2, ('downsample_layers', 2): 3,
               ('downsample_layers', 3): layers, ('stages', 3): layers}
        number = 3 + int(parts[3]) // 3 if place == ('stages', 2) else ids[place]
    else:
        number = 0 if parts[1] == 'downsample_layers' else place[1] + 1
    return rate**(layers + 2 - number - 1)


@pytest.mark.parametrize('rate', [.7, .9])
@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
@pytest.mark.parametrize('arch, layers', [('tiny', 6), ('small', 12), ('base', 12)])
def test_scales_and_weight_decay_are_the_official_ones(arch, layers, decay_type, rate):
    model = Detector(backbone=meta(ConvNeXt, arch))
    found = settings(model, decay_rate=rate, decay_type=decay_type)
    for name, p in model.named_parameters():
        lr, weight_decay = found[name]
        assert lr == pytest.approx(LR * official_scale(name, rate, layers, decay_type)), name
        assert weight_decay == (WD if p.dim() > 1 else 0), name


@pytest.mark.parametrize('arch, rate, decay_type, expected', [
    # stem, stage 0, stage 1, the third stage in threes, the last stage, norms and heads
    ('tiny', .95, 'layer_wise', '.698 .735 .774 .8145 .857 .9025 .95 1'),
    ('tiny', .7, 'layer_wise', '.082 .118 .168 .240 .343 .49 .7 1'),
    ('small', .7, 'layer_wise',
     '.0097 .0138 .0198 .0282 .0404 .0576 .0824 .118 .168 .240 .343 .49 .7 1'),
    ('base', .8, 'layer_wise', '.055 .069 .086 .107 .134 .168 .210 .262 .328 .410 .512 .64 .8 1'),
    # all downsampling, the stages, norms and heads
    ('tiny', .9, 'stage_wise', '.478 .531 .590 .656 .729 1'),
    ('base', .9, 'stage_wise', '.254 .282 .314 .349 .387 1'),
])
def test_scales_are_those_of_the_official_runs(arch, rate, decay_type, expected):
    found = lrs(Detector(backbone=meta(ConvNeXt, arch)), decay_rate=rate, decay_type=decay_type)
    expected = [float(value) for value in expected.split()]
    assert sorted({round(lr, 12) for lr in found.values()}) == pytest.approx(expected, rel=6e-3)

    thirds = convnext.ARCHS[arch]['depths'][2] // 3
    if decay_type == 'layer_wise':
        owners = ['downsample_layers.0.0', 'stages.0.2.dwconv', 'stages.1.0.pwconv1',
                  *(f'stages.2.{3 * i + 2}.norm' for i in range(thirds)),
                  'stages.3.1.dwconv', 'norm3']
    else:
        owners = ['downsample_layers.3.1', 'stages.0.0.dwconv', 'stages.1.0.dwconv',
                  f'stages.2.{3 * thirds - 1}.norm', 'stages.3.0.dwconv', 'norm0']
    in_order = [found[f'backbone.{name}.weight'] for name in owners]
    assert in_order == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize('arch, layers', [('tiny', 6), ('base', 12)])
@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_agrees_with_the_constructor_of_mmdet(arch, layers, decay_type):
    model = Detector(backbone=meta(ConvNeXt, arch))
    del model.head.scale  # a number without dimensions, which mmdet's decays
    optimizer = dict(type='AdamW', lr=LR, weight_decay=WD)
    paramwise = dict(decay_rate=.8, decay_type=decay_type, num_layers=layers)
    theirs = LearningRateDecayOptimizerConstructor(
        dict(type='OptimWrapper', optimizer=optimizer), paramwise)(model)
    assert settings(model, **paramwise) == by_name(model, theirs.optimizer.param_groups)


@pytest.mark.parametrize('blocks, layers', [(1, 6), (6, 6), (9, 6), (10, 12), (27, 12), (30, 13),
                                            (31, 14), (60, 23)])
def test_no_depth_learns_faster_than_what_follows_it(blocks, layers):
    depths = (3, 3, blocks, 3)
    assert convnext_num_layers(depths) == layers
    ids = [convnext_layer_of(name, depths, 'layer_wise') for name in
           ['downsample_layers.0.0.weight', 'stages.0.0.gamma', 'stages.1.0.gamma',
            *(f'stages.2.{i}.gamma' for i in range(blocks)), 'stages.3.0.gamma', 'norm3.weight']]
    assert ids == sorted(ids) and ids[0] == 0 and ids[-1] == layers + 1
    assert ids[-3] < ids[-2] == layers


def test_response_normalisation_has_no_weight_decay():
    model = Detector(backbone=ConvNeXt(dict(CONVNEXT, use_grn=True)))
    found = settings(model, decay_rate=.7)
    for name in ('gamma', 'beta'):
        assert found[f'backbone.stages.2.3.grn.{name}'] == (pytest.approx(LR * .7**3), 0)


# ---------------------------------------------------------------------------- CMT


@pytest.mark.parametrize('arch, layers', [('tiny', 6), ('xsmall', 6), ('small', 8), ('base', 9)])
def test_cmt_learns_by_its_depth(arch, layers):
    model = Detector(backbone=meta(CMT, arch))
    found = settings(model, decay_rate=.7)
    blocks = cmt.ARCHS[arch]['depths'][2]
    expected = {'stem.layers.0.weight': 0, 'stem.layers.8.bias': 0,
                'stages.0.patch_aggregation.weight': 0, 'stages.0.norm.weight': 0,
                'stages.0.relative_bias.table': 0, 'stages.0.blocks.1.lpu.weight': 0,
                'stages.1.patch_aggregation.weight': 1, 'stages.1.relative_bias.table': 1,
                'stages.1.blocks.1.attn.kv.weight': 1,
                'stages.2.patch_aggregation.bias': 2, 'stages.2.relative_bias.table': 2,
                f'stages.2.blocks.{blocks - 1}.ffn.expand.weight': layers - 1,
                'stages.3.patch_aggregation.weight': layers, 'stages.3.relative_bias.table': layers,
                'stages.3.blocks.0.ffn.norm2.weight': layers}
    expected.update({f'stages.2.blocks.{i}.lpu.weight': 2 + i // 3 for i in range(blocks)})
    for name, layer in expected.items():
        assert found[f'backbone.{name}'][0] == pytest.approx(LR * .7**(layers + 1 - layer)), name
    assert found['head.conv.weight'] == (LR, WD)
    for name, p in model.named_parameters():
        matrix = p.dim() > 1 and not name.endswith('relative_bias.table')
        assert found[name][1] == (WD if matrix else 0), name


def test_cmt_learns_by_its_stages():
    found = lrs(Detector(backbone=meta(CMT, 'small')), decay_rate=.9, decay_type='stage_wise')
    for name, scale in found.items():
        stage = int(name.split('.')[2]) if name.startswith('backbone.stages.') else 0
        assert scale == pytest.approx(1 if name.startswith('head') else .9**(4 - stage)), name


# ---------------------------------------------------------------------------- where backbones are


BUILD = {'ConvNeXt': lambda **k: ConvNeXt(CONVNEXT, **k), 'CMT': lambda **k: CMT(CMT_ARCH, **k)}
BOTH = pytest.mark.parametrize('kind', list(BUILD))


def without(found, prefix):
    return {name[len(prefix):]: value for name, value in found.items() if name.startswith(prefix)}


@BOTH
@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_prefix_does_not_matter(kind, decay_type):
    paramwise = dict(decay_rate=.7, decay_type=decay_type)
    expected = without(settings(Detector(backbone=BUILD[kind]()), **paramwise), 'backbone.')
    assert len({lr for lr, _ in expected.values()}) >= 4

    assert without(settings(Detector(img_backbone=BUILD[kind]()), **paramwise),
                   'img_backbone.') == expected
    distilled = Detector(student=Detector(backbone=BUILD[kind]()),
                         teacher=Detector(backbone=BUILD[kind]()))
    found = settings(distilled, **paramwise)
    assert without(found, 'student.backbone.') == without(found, 'teacher.backbone.') == expected
    assert {lr for name, (lr, _) in found.items() if '.backbone.' not in name} == {LR}
    assert settings(BUILD[kind](), **paramwise) == expected  # alone


def test_two_kinds_at_once():
    found = lrs(Detector(camera=BUILD['CMT'](), lidar=BUILD['ConvNeXt']()), decay_rate=.7)
    assert found['camera.stages.3.relative_bias.table'] == pytest.approx(.7)
    assert found['camera.stem.layers.0.weight'] == pytest.approx(.7**5)  # 4 blocks: layers 0 to 4
    assert found['lidar.downsample_layers.0.0.weight'] == pytest.approx(.7**7)


def test_shared_backbone_is_counted_once():
    backbone = BUILD['CMT']()
    model = Detector(backbone=backbone, again=Detector(backbone=backbone))
    assert set(without(settings(model, decay_rate=.7), 'again.')) == {
        'head.conv.weight', 'head.conv.bias', 'head.norm.weight', 'head.norm.bias', 'head.scale'}


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@BOTH
def test_distributed_wrappers_do_not_matter(kind, one_process):
    expected = settings(Detector(backbone=BUILD[kind]()), decay_rate=.7)
    for wrap in (nn.parallel.DistributedDataParallel, MMDistributedDataParallel):
        wrapped = wrap(Detector(backbone=BUILD[kind]()))
        inside = Detector(backbone=wrap(BUILD[kind]()))
        for model in (wrapped, wrap(wrapped), inside, wrap(inside)):
            found = settings(model, decay_rate=.7)
            assert {name.replace('module.', ''): value for name, value in found.items()} == expected


@BOTH
@pytest.mark.parametrize('frozen', [0, 2, 4])
def test_frozen_parameters_are_in_no_group(kind, frozen):
    model = Detector(backbone=BUILD[kind](frozen_stages=frozen))
    model.train()
    found = settings(model, decay_rate=.7)  # which checks that those are missing
    assert any(name.startswith('backbone.stages.1.') for name in found) == (frozen < 2)
    assert found['head.conv.weight'] == (LR, WD)


# ---------------------------------------------------------------------------- settings


def test_custom_keys_multiply_and_the_longest_counts():
    model = Detector(backbone=BUILD['ConvNeXt']())
    plain = settings(model, decay_rate=.7)
    found = settings(model, decay_rate=.7, custom_keys={
        'head': dict(lr_mult=10.), 'stages.2': dict(lr_mult=.5, decay_mult=2.),
        'stages.2.1.dwconv': dict(decay_mult=0.), 'head.norm': dict(decay_mult=1.),
        'stages.3.0.norm': dict(lr_mult=2.), 'dwconv.weigh': dict(lr_mult=7.), 'nowhere': dict()})
    assert found['head.conv.weight'] == (pytest.approx(10 * LR), WD)
    assert found['head.conv.bias'] == (pytest.approx(10 * LR), 0)
    assert found['head.norm.weight'] == (LR, WD)
    name = 'backbone.stages.2.0.pwconv1.weight'
    assert found[name] == (pytest.approx(.5 * plain[name][0]), 2 * WD)
    name = 'backbone.stages.2.1.dwconv.weight'
    assert found[name] == (pytest.approx(plain[name][0]), 0)
    name = 'backbone.stages.2.0.dwconv.weight'  # 'dwconv.weigh' is longer than 'stages.2'
    assert found[name] == (pytest.approx(7 * plain[name][0]), WD)
    name = 'backbone.stages.3.0.norm.bias'
    assert found[name] == (pytest.approx(2 * plain[name][0]), 0)
    name = 'backbone.stages.1.0.pwconv1.weight'
    assert found[name] == plain[name]


def test_of_custom_keys_of_one_length_the_first_by_alphabet_counts():
    found = lrs(Detector(backbone=BUILD['CMT']()), decay_rate=1., custom_keys={
        'nv.w': dict(lr_mult=3.), 'conv': dict(lr_mult=2.)})
    assert found['head.conv.weight'] == pytest.approx(2)


def test_few_groups_with_the_full_rate_first():
    model = Detector(backbone=meta(ConvNeXt, 'tiny'))
    optim = build_optim_wrapper(model, ConfigDict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=LR, weight_decay=WD),
        constructor='LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(decay_rate=.7)))
    rates = optim.get_lr()['lr']
    assert len(rates) == 2 * 8  # layers, with and without weight decay
    assert rates == sorted(rates, reverse=True) and rates[0] == LR  # what mmengine logs


def test_weight_decay_may_be_the_optimizers_default():
    found = settings(Detector(backbone=BUILD['CMT']()), optimizer=dict(type='AdamW', lr=LR),
                     decay_rate=.7)
    assert found['head.conv.weight'] == (LR, .01)
    assert found['head.conv.bias'] == (LR, 0)


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg'])
def test_is_found_from_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert settings(Detector(backbone=BUILD['CMT']()), decay_rate=.7)


def test_works_with_mixed_precision(monkeypatch):
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    # It refuses to be built without a GPU.
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    model = Detector(backbone=BUILD['ConvNeXt']())
    assert (settings(model, wrapper='AmpOptimWrapper', decay_rate=.7)
            == settings(model, decay_rate=.7))
    build = LayerDecayOptimWrapperConstructor(
        dict(type='AmpOptimWrapper', optimizer=dict(type='SGD', lr=.1)), dict(decay_rate=.7))
    assert isinstance(build(model), AmpOptimWrapper)


def test_a_step_moves_each_layer_by_its_rate():
    model = Detector(backbone=BUILD['ConvNeXt']())
    optim = build_optim_wrapper(model, dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=.1),
        constructor='LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(decay_rate=.5)))
    assert isinstance(optim, OptimWrapper)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optim.update_params(sum(p.sum() for p in model.parameters()))
    for name, scale in [('head.conv.weight', 1), ('backbone.norm0.bias', 1),
                        ('backbone.stages.3.0.gamma', .5),
                        ('backbone.downsample_layers.0.0.weight', .5**7)]:
        moved = before[name] - model.get_parameter(name)
        torch.testing.assert_close(moved, torch.full_like(moved, .1 * scale), rtol=1e-3, atol=1e-6)


def test_logs_one_short_table():
    lines = []
    logger = MMLogger.get_current_instance()
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())
    logger.addHandler(handler)
    try:
        settings(Detector(backbone=meta(ConvNeXt, 'base')), decay_rate=.7)
    finally:
        logger.removeHandler(handler)
    assert lines[0] == 'layer_wise decay of the learning rate by 0.7:'
    assert lines[1].split() == ['lr', 'weight', 'decay', 'parameters', 'from']
    assert ['0.0002', '0.05', '16', 'head.conv.weight'] in [line.split() for line in lines]
    assert len(lines) == 2 + 2 * 14


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize('paramwise, message', [
    (dict(), r"paramwise_cfg\['decay_rate'\] must be above 0 and at most 1, not None"),
    (dict(decay_rate=0), 'must be above 0 and at most 1, not 0'),
    (dict(decay_rate=1.1), 'must be above 0 and at most 1, not 1.1'),
    (dict(decay_rate='.7'), "must be above 0 and at most 1, not '.7'"),
    (dict(decay_rate=.7, decay_type='layerwise'),
     r"paramwise_cfg\['decay_type'\] must be one of \('layer_wise', 'stage_wise'\), "
     "not 'layerwise'"),
    (dict(decay_rate=.7, norm_decay_mult=0., layer_decay=.7),
     r"unknown keys \['layer_decay', 'norm_decay_mult'\]; known: \['custom_keys', 'decay_rate', "
     r"'decay_type', 'num_layers'\]"),
    (dict(decay_rate=.7, custom_keys=dict(head=dict(lr=1.))),
     r"paramwise_cfg\['custom_keys'\]\['head'\] must be a dict of some of "
     r"\['decay_mult', 'lr_mult'\], not {'lr': 1.0}"),
    (dict(decay_rate=.7, custom_keys=dict(head=.1)), r"\['head'\] must be a dict .* not 0.1"),
])
def test_refuses_settings_that_cannot_be(paramwise, message):
    with pytest.raises(ValueError, match=message):
        LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type='AdamW', lr=LR, weight_decay=WD)), paramwise)


def test_refuses_an_optimizer_without_lr():
    with pytest.raises(ValueError, match='the optimizer needs an lr'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW')), dict(decay_rate=.7))


@pytest.mark.parametrize('arch, given, has', [('small', 6, 12), ('tiny', 12, 6)])
def test_refuses_a_number_of_layers_that_does_not_fit(arch, given, has):
    # With 6, mmdet's constructor lets the end of ConvNeXt-S learn 4 times as fast as the heads.
    model = Detector(backbone=meta(ConvNeXt, arch))
    message = (rf"paramwise_cfg\['num_layers'\] = {given} does not fit this ConvNeXt, "
               rf'which has {has} \(layer_wise\); leave it out')
    with pytest.raises(ValueError, match=message):
        settings(model, decay_rate=.7, num_layers=given)
    assert settings(model, decay_rate=.7, num_layers=has) == settings(model, decay_rate=.7)


def test_refuses_a_model_without_a_backbone_of_ours():
    message = "Detector has no backbone of cmt_backbones, .* type='CMT' or type='ConvNeXt'"
    with pytest.raises(ValueError, match=message):
        settings(Detector(backbone=nn.Conv2d(3, 8, 1)), decay_rate=.7)

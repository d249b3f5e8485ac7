"""The configs that start from DINOv3: what they say, and its weights in them, frozen and not."""
import ast
import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from test_mmdet_configs import batch

import golden_numbers
import layouts
from cmt_backbones import ConvNeXt
from cmt_backbones.openmmlab import config_from_file
from tool import ROOT

SIZES = dict(t='tiny', s='small', b='base', l='large')
DETECTORS = {f'{detector}_dinov3_convnext_{size}_{kind}' for detector in ('retinanet', 'mask_rcnn')
             for size in 'tsb' for kind in ('1x', 'frozen')} | {'cascade_mask_rcnn_dinov3_convnext_l_ms_3x'}
SEGMENTORS = {f'upernet_dinov3_convnext_{size}_160k_ade20k' for size in 'tsb'} | {
    'upernet_dinov3_convnext_l_160k_ade20k_640'} | {f'linear_dinov3_convnext_{size}_40k_ade20k' for size in 'tsbl'}
PATHS = sorted([f'configs/mmdet/{name}.py' for name in DETECTORS] + [f'configs/mmseg/{name}.py' for name in SEGMENTORS])
MODEL_CARD = dict(t=42.7, s=44.8, b=46.3, l=47.8)  # mIoU of ADE20K by a linear layer
LIGHTLY = dict(t=54.4, s=56.9, b=58.6, l=60.0)  # box AP of LT-DETR on COCO, by LightlyTrain


def test_nothing_is_left_out():
    assert PATHS == sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('mm*/*dinov3*.py'))


@pytest.mark.parametrize('path', PATHS)
def test_text(path):
    text = (ROOT / path).read_text()
    said = ast.get_docstring(ast.parse(text))
    size = re.search(r'convnext_([tsbl])_', path)[1]
    assert f'    tools/dist_train.sh {path} 8' in said.splitlines() and len(text.splitlines()) <= 40
    assert 'arXiv 2508.10104' in said and 'DINOv3 License' in said
    if 'linear' in path:
        assert f"DINOv3's model card: {MODEL_CARD[size]} mIoU" in said
    else:
        assert 'No published result.' in said
    if '_1x' in path or '_3x' in path:
        assert f'LightlyTrain reports {LIGHTLY[size]:.1f} box AP for its LT-DETR' in said
    if 'frozen' in path:  # all else is the fine-tuned one's
        assert text.split('"""')[2].strip() == (
            f"_base_ = './{path.split('/')[2].replace('frozen', '1x')}'\n\n"
            'model = dict(backbone=dict(frozen_stages=4, drop_path_rate=0.))')
    else:
        assert f"checkpoint = 'hf-hub:timm/convnext_{SIZES[size]}.dinov3_lvd1689m'" in text


@pytest.mark.parametrize('name, base', [
    ('mmdet/retinanet_dinov3_convnext_t_1x', 'mmdet/retinanet_convnext_t_1x'),
    ('mmseg/upernet_dinov3_convnext_t_160k_ade20k', 'mmseg/upernet_convnext_t_160k_ade20k')])
def test_a_recipe_differs_in_its_weights_alone(name, base):
    cfg, other = (config_from_file(ROOT / f'configs/{path}.py').to_dict() for path in (name, base))
    name = 'hf-hub:timm/convnext_tiny.dinov3_lvd1689m'
    assert cfg['model']['backbone'].pop('init_cfg') == dict(type='Pretrained', checkpoint=name)
    assert other['model']['backbone'].pop('init_cfg')['checkpoint'] != cfg.pop('checkpoint')
    other.pop('checkpoint')
    assert cfg == other


def test_the_recipe_of_the_linear_layer():
    cfg = config_from_file(ROOT / 'configs/mmseg/linear_dinov3_convnext_t_40k_ade20k.py')
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(
        type='AdamW', lr=1e-3, betas=(.9, .999), weight_decay=1e-3))
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval, cfg.train_dataloader.batch_size) == (40000, 5000, 2)
    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end) == ('LinearLR', 1e-6, 1500)
    assert (cosine.type, cosine.T_max, cosine.begin, cosine.end) == ('CosineAnnealingLR', 38500, 1500, 40000)
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))


# ---------------------------------------------------------------------------- weights


@pytest.fixture(scope='module')
def golden():
    """Numbers of the official ConvNeXt-T, and the weights behind them."""
    numbers = golden_numbers.load('convnext_tiny')
    return numbers, golden_numbers.formula_state(ConvNeXt('tiny').state_dict(), int(numbers['seed']))


def error(backbone, golden):
    """The largest relative error of a backbone's maps; output norms are not of the file."""
    numbers, state = golden
    with torch.no_grad():
        outs = backbone(golden_numbers.images(numbers))
    outs = [out * state[f'norm{i}.weight'][:, None, None] + state[f'norm{i}.bias'][:, None, None]
            for i, out in zip(backbone.out_indices, outs)]
    return max(golden_numbers.error(numbers, f'eval/{i}', out) for i, out in zip(backbone.out_indices, outs))


@pytest.mark.parametrize('path, layout', [
    ('mmdet/retinanet_dinov3_convnext_t_frozen', layouts.dinov3_convnext),
    ('mmdet/mask_rcnn_dinov3_convnext_t_1x', layouts.dinov3_convnext),
    ('mmseg/upernet_dinov3_convnext_t_160k_ade20k', layouts.timm_dinov3_convnext),
    ('mmseg/linear_dinov3_convnext_t_40k_ade20k', layouts.timm_dinov3_convnext)])
def test_golden_numbers_within_a_recipe(path, layout, golden, tmp_path):
    cfg = config_from_file(ROOT / f'configs/{path}.py')
    torch.save(layout(golden[1]), tmp_path / 'dinov3.pth')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'dinov3.pth')
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    assert error(model.backbone.eval(), golden) < 1e-5
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if cfg.model.backbone.get('frozen_stages') == 4:
        assert trained and not any(name.startswith('backbone.') for name in trained)
        assert error(model.train().backbone, golden) < 1e-5  # no stochastic depth either
    else:
        assert trained == {name for name, _ in model.named_parameters()}


def test_a_frozen_backbone_costs_the_forward_alone(golden, tmp_path):
    """Nothing of it is kept for a backward pass, no rate is wasted on it, and a step leaves it as it was."""
    torch.manual_seed(0)
    cfg = config_from_file(ROOT / 'configs/mmdet/retinanet_dinov3_convnext_t_frozen.py')
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.backbone.load_state_dict({k: v for k, v in golden[1].items() if k in model.backbone.state_dict()})
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        outs = model.train().backbone(torch.randn(2, 3, 64, 96))
        assert not kept and not any(out.requires_grad for out in outs)
        unfrozen = ConvNeXt('tiny', out_indices=(1, 2, 3)).train()
        unfrozen(torch.randn(2, 3, 64, 96))
        assert sum(kept) > 100 * sum(out.numel() for out in outs)

    wrapper = dict(cfg.optim_wrapper, type='OptimWrapper')  # mixed precision refuses to be built without a GPU
    optim = build_optim_wrapper(model, wrapper)
    assert all(p.requires_grad for group in optim.optimizer.param_groups for p in group['params'])
    assert {group['lr'] for group in optim.optimizer.param_groups} == {1e-4}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert model.train_step(batch(), optim)['loss'].isfinite()
    changed = {k.split('.')[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'neck', 'bbox_head'}

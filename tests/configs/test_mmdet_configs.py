"""Every detector config: what it says, its recipe, and that it trains and predicts."""
import gc
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import cmt_backbones  # noqa: F401  (registers the backbones)
import processes
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.openmmlab import CPUDistributedDataParallel

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / 'configs/mmdet').glob('*.py')
                 if 'dinov3' not in path.stem)  # those are in test_dinov3_configs.py
COCO = [name for name in CONFIGS if name != 'retinanet_cmt_ti_shapes']  # all but the demo
CONVNEXT = [name for name in COCO if 'convnext' in name]

CMT_URL = 'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_{}.pth'
CONVNEXT_URL = 'https://dl.fbaipublicfiles.com/convnext/convnext_{}_224.pth'
# Short name in the config's: arch, published weights, channels.
BACKBONES = dict(
    cmt_ti=('tiny', CMT_URL.format('tiny'), (46, 92, 184, 368)),
    cmt_xs=('xsmall', CMT_URL.format('xs'), (52, 104, 208, 416)),
    cmt_s=('small', CMT_URL.format('small'), (64, 128, 256, 512)),
    cmt_b=('base', CMT_URL.format('base'), (76, 152, 304, 608)),
    convnext_t=('tiny', CONVNEXT_URL.format('tiny_1k'), (96, 192, 384, 768)),
    convnext_s=('small', CONVNEXT_URL.format('small_1k'), (96, 192, 384, 768)),
    convnext_b=('base', CONVNEXT_URL.format('base_1k'), (128, 256, 512, 1024)),
    convnext_l=('large', CONVNEXT_URL.format('large_22k'), (192, 384, 768, 1536)),
    convnext_xl=('xlarge', CONVNEXT_URL.format('xlarge_22k'), (256, 512, 1024, 2048)))
IMAGENET_DROP_PATH = dict(cmt_ti=.1, cmt_xs=.08, cmt_s=.1, cmt_b=.25)

# The official recipes (ConvNeXt's object_detection/configs/convnext): lr, decay rate, layers,
# drop path, mixed precision; box AP and mask AP of the paper's table 3.
OFFICIAL = dict(
    mask_rcnn_convnext_t_ms_3x=(1e-4, .95, 6, .4, True, 46.2, 41.7),
    cascade_mask_rcnn_convnext_t_ms_3x=(2e-4, .7, 6, .4, True, 50.4, 43.7),
    cascade_mask_rcnn_convnext_s_ms_3x=(2e-4, .7, 12, .6, True, 51.9, 45.0),
    cascade_mask_rcnn_convnext_b_ms_3x=(2e-4, .8, 12, .7, True, 52.7, 45.6),
    cascade_mask_rcnn_convnext_l_ms_3x=(1e-4, .7, 12, .7, False, 54.8, 47.6),
    cascade_mask_rcnn_convnext_xl_ms_3x=(1e-4, .7, 12, .8, False, 55.2, 47.7))
# Ours: drop path after 12 and 36 epochs; the rest is of the official Mask R-CNN with ConvNeXt-T.
OUR_DROP_PATH = dict(convnext_t=(.2, .4), convnext_s=(.3, .6), convnext_b=(.4, .7))
PUBLISHED = {
    'retinanet_cmt_s_1x': 'Paper (arXiv 2107.06263, table 6): 44.3 box AP',
    'mask_rcnn_cmt_s_1x': 'Paper (arXiv 2107.06263, table 7): 44.6 box AP, 40.7 mask AP',
    **{name: f'Paper (arXiv 2201.03545, table 3): {box} box AP, {mask} mask AP'
       for name, (*_, box, mask) in OFFICIAL.items()}}


def config(name):
    return Config.fromfile(ROOT / 'configs/mmdet' / f'{name}.py')


def parts(name):
    """'mask_rcnn_cmt_s_1x' -> ('mask_rcnn', 'cmt_s', '1x')"""
    return re.fullmatch(r'(.+)_((?:cmt|convnext)_[a-z]+)_(1x|ms_3x|shapes)', name).groups()


def test_the_set_is_complete():
    plain = [f'{detector}_{backbone}_{schedule}' for detector in ('retinanet', 'mask_rcnn')
             for backbone in list(BACKBONES)[:7] for schedule in ('1x', 'ms_3x')]
    cascade = [f'cascade_mask_rcnn_convnext_{size}_ms_3x' for size in ('t', 's', 'b', 'l', 'xl')]
    assert COCO == sorted(plain + cascade) and len(COCO) == 33


# ---------------------------------------------------------------------------- what it says


@pytest.mark.parametrize('name', CONFIGS)
def test_text(name):
    path = Path('configs/mmdet') / f'{name}.py'
    text = (ROOT / path).read_text()
    doc = text.split('"""')[1]
    command, = re.findall(r'^ {4}(tools/dist_train\.sh) (\S+) (\d+)$', doc, re.M)
    assert command[1] == str(path) and (ROOT / command[0]).stat().st_mode & 0o111
    if name in COCO:
        assert command[2] == '8' and len(text.splitlines()) <= 45
        assert PUBLISHED.get(name, 'No published result') in doc
        assert (name in PUBLISHED) != ('No published result' in doc)


@pytest.mark.parametrize('name', CONFIGS)
def test_what_it_trains(name):
    cfg = config(name)
    detector, backbone, schedule = parts(name)
    imported = ['cmt_backbones', 'cmt_backbones.openmmlab']
    assert cfg.custom_imports == dict(imports=imported, allow_failed_imports=False)
    arch, url, channels = BACKBONES[backbone]
    model = cfg.model
    assert model.type == dict(retinanet='RetinaNet', mask_rcnn='MaskRCNN',
                              cascade_mask_rcnn='CascadeRCNN')[detector]
    assert model.backbone.type == ('CMT' if 'cmt' in backbone else 'ConvNeXt')
    assert model.backbone.arch == arch
    first = 1 if detector == 'retinanet' else 0
    assert tuple(model.backbone.out_indices) == tuple(range(first, 4))
    assert tuple(model.neck.in_channels) == channels[first:] and not model.neck.get('start_level')
    if schedule == 'shapes':
        return
    assert model.backbone.init_cfg == dict(type='Pretrained', checkpoint=url)
    assert model.backbone.get('norm_eval', False) == ('cmt' in backbone)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.val_evaluator.metric == ('bbox' if detector == 'retinanet' else ['bbox', 'segm'])
    resize, = [step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize']
    assert resize.scale == (1333, 800) and resize.keep_ratio

    epochs, milestones = (12, [8, 11]) if schedule == '1x' else (36, [27, 33])
    assert cfg.train_cfg.max_epochs == epochs
    warmup, steps = cfg.param_scheduler
    assert warmup == dict(type='LinearLR', start_factor=.001, by_epoch=False, begin=0, end=500,
                          **({'_scope_': 'mmdet'} if '_scope_' in warmup else {}))
    assert steps.type == 'MultiStepLR' and (steps.gamma, steps.end) == (.1, epochs)
    assert steps.milestones == milestones


@pytest.mark.parametrize('name', [name for name in COCO
                                  if parts(name)[1] in ('cmt_ti', 'convnext_t')])
def test_survives_being_written(name):
    """As a run writes it into its work_dir. Slow, and the same for the larger archs."""
    cfg = config(name)
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize('name', COCO)
def test_recipe(name):
    cfg = config(name)
    detector, backbone, schedule = parts(name)
    optim, drop_path = cfg.optim_wrapper, cfg.model.backbone.drop_path_rate
    assert optim.optimizer.type == 'AdamW' and 'clip_grad' not in optim
    if backbone in IMAGENET_DROP_PATH:  # PVT's recipe
        assert optim == dict(type='OptimWrapper', optimizer=dict(
            type='AdamW', lr=1e-4 if detector == 'retinanet' else 2e-4, weight_decay=1e-4))
        assert drop_path == IMAGENET_DROP_PATH[backbone]
        return
    lr, rate, layers, expected_drop_path, amp, *_ = OFFICIAL.get(name, (
        1e-4, .95, 6 if backbone == 'convnext_t' else 12,
        OUR_DROP_PATH.get(backbone, (0, 0))[schedule == 'ms_3x'], True))
    assert optim == dict(
        type='AmpOptimWrapper' if amp else 'OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, betas=(.9, .999), weight_decay=.05),
        constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=rate, decay_type='layer_wise', num_layers=layers))
    assert drop_path == expected_drop_path


@pytest.mark.parametrize('name', [name for name in COCO if name.startswith('cascade')])
def test_heads_of_the_cascades(name):
    heads = config(name).model.roi_head.bbox_head
    assert [head.bbox_coder.target_stds for head in heads] == [
        [.1, .1, .2, .2], [.05, .05, .1, .1], [.033, .033, .067, .067]]
    for head in heads:
        assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
        assert head.norm_cfg == dict(type='SyncBN', requires_grad=True)
        assert head.reg_decoded_bbox and not head.reg_class_agnostic
        assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.)


# ---------------------------------------------------------------------------- that it works


def build(cfg, **backbone):
    """The real detector, but for the published weights and for BatchNorms that need GPUs.

    It samples fewer regions, each of which goes through the same heads.
    """
    cfg.model.backbone.update(init_cfg=None, **backbone)
    if 'rpn_head' in cfg.model:
        stages = cfg.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 32
        cfg.model.test_cfg.rpn.max_per_img = 32
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    return model


def batch(objects=3, seed=0):
    """A batch of one image of 64x96, as a dataloader gives it."""
    data = demo_mm_inputs(1, (3, 64, 96), num_items=[objects], num_classes=5, with_mask=True)
    data['inputs'] = [torch.roll(image, seed, -1) for image in data['inputs']]
    return data


@pytest.fixture(scope='module', params=CONFIGS)
def detector(request):
    """Each detector is built once for the tests below, and is gone before the next one is."""
    torch.manual_seed(0)
    cfg = config(request.param)
    yield SimpleNamespace(name=request.param, cfg=cfg, model=build(cfg))
    gc.collect()


def test_a_step_reaches_every_parameter(detector):
    model = detector.model.train()
    data = model.data_preprocessor(batch(), training=True)
    loss, terms = model.parse_losses(model(**data, mode='loss'))
    assert all(value.isfinite().all() for value in terms.values())
    loss.backward()
    # DistributedDataParallel (find_unused_parameters=False, mmengine's default) waits for a hook on
    # each parameter that requires a gradient. The hook fires when the gradient is accumulated,
    # which makes `grad` no longer None, be it of zeros: without a gradient here is unused there.
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
    assert sum(p.grad.abs().sum() for p in model.backbone.parameters()) > 0
    model.zero_grad()  # a gigabyte or two in the largest ones


def test_layer_decay(detector):
    if detector.name not in CONVNEXT:
        pytest.skip('CMT follows PVT, which has none')
    cfg = detector.cfg.optim_wrapper.copy()
    cfg.type = 'OptimWrapper'  # mixed precision refuses to be built without a GPU
    optim = build_optim_wrapper(detector.model, cfg)
    rates = {p: group['lr'] for group in optim.optimizer.param_groups for p in group['params']}
    lr, decay = cfg.optimizer.lr, cfg.paramwise_cfg
    scale = {name: rates[p] / lr for name, p in detector.model.named_parameters()}
    assert len(rates) == len(scale)  # nothing is frozen
    blocks = 9 if parts(detector.name)[1] == 'convnext_t' else 27
    for name, layers_below_heads in {
            'backbone.downsample_layers.0.0.weight': decay.num_layers + 1,
            'backbone.stages.0.0.dwconv.weight': decay.num_layers,
            'backbone.stages.2.0.gamma': decay.num_layers - 2,
            f'backbone.stages.2.{blocks - 1}.gamma': decay.num_layers - 2 - (blocks - 1) // 3,
            'backbone.stages.3.2.pwconv2.bias': 1,
            'backbone.norm3.weight': 0,
            'neck.fpn_convs.0.conv.weight': 0}.items():
        assert scale[name] == pytest.approx(decay.decay_rate**layers_below_heads), name


def test_predicts(detector):
    model = detector.model.eval()
    for cfg in (model.test_cfg, model.test_cfg.get('rcnn', {})):
        cfg['score_thr'] = 0.  # untrained, nothing would be above the real threshold
    data = model.data_preprocessor(batch(), training=False)
    with torch.no_grad():
        sample, = model(**data, mode='predict')
    found = sample.pred_instances
    assert len(found) and found.scores.isfinite().all()
    height, width = sample.ori_shape
    assert found.bboxes.min() >= 0
    assert (found.bboxes.amax(0) <= torch.tensor([width, height] * 2)).all()
    assert found.labels.max() < (5 if 'shapes' in detector.name else 80)
    assert ('masks' in found) == ('mask' in detector.name)
    if 'masks' in found:
        assert found.masks.shape == (len(found), height, width) and found.masks.dtype == torch.bool


# ---------------------------------------------------------------------------- processes


STRUCTURES = ['retinanet_cmt_ti_1x', 'retinanet_convnext_t_1x', 'mask_rcnn_cmt_ti_1x',
              'mask_rcnn_convnext_t_1x', 'cascade_mask_rcnn_convnext_t_ms_3x']


def train_together(rank):
    """One of two processes: three steps of each structure."""

    def steps(model):
        model = CPUDistributedDataParallel(model, find_unused_parameters=False)
        optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))
        for step in range(3):  # what a step leaves unused is found by the next one
            objects = 0 if (step, rank) == (1, 1) else 3  # cropping leaves images without any
            losses = model.train_step(batch(objects, seed=7 * rank + step), optim)
            assert losses['loss'].isfinite()
        return model

    for name in STRUCTURES:
        torch.manual_seed(rank)  # DistributedDataParallel starts them equal
        model = steps(build(config(name)))
        for key, p in model.named_parameters():
            both = [torch.empty_like(p) for _ in range(2)]
            torch.distributed.all_gather(both, p.detach())
            assert torch.equal(*both), (name, key)

    # and the fault that out_indices=(1, 2, 3) avoids is one that these steps would find
    cfg = config('retinanet_convnext_t_1x')
    cfg.model.neck.update(in_channels=[96, 192, 384, 768], start_level=1)
    with pytest.raises(RuntimeError, match='Expected to have finished reduction'):
        steps(build(cfg, out_indices=(0, 1, 2, 3)))


def test_processes_train_together(free_port):
    processes.in_two(train_together, free_port)


# ---------------------------------------------------------------------------- data


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'scenes'
    drawn_scenes.make_shapes(folder, 4, 2, 0, [(192, 144), (144, 192)])
    return SimpleNamespace(folder=folder, classes=drawn_scenes.CLASSES)


def on_scenes(cfg, scenes):
    """The config on drawn scenes in the place of COCO."""
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val')):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(scenes.folder), ann_file=f'annotations/{split}.json',
                              data_prefix=dict(img=f'images/{split}/'),
                              metainfo=dict(classes=scenes.classes))
    cfg.val_evaluator.ann_file = str(scenes.folder / 'annotations/val.json')
    return cfg


@pytest.mark.parametrize('name', [f'{detector}_{rest}' for detector in ('retinanet', 'mask_rcnn')
                                  for rest in ('cmt_ti_1x', 'cmt_ti_ms_3x', 'convnext_t_ms_3x')])
def test_training_images(name, scenes):
    cfg = on_scenes(config(name), scenes)
    np.random.seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        samples = [dataset[i % 4] for i in range(60)]
    shorts, proportions, flips = set(), set(), set()
    for sample in samples:
        _, height, width = sample['inputs'].shape
        shorts.add(min(height, width))
        proportions.add(round(max(height, width) / min(height, width), 1))
        flips.add(sample['data_samples'].flip)
        truth = sample['data_samples'].gt_instances
        assert max(height, width) <= 1333 and ('masks' in truth) == name.startswith('mask')
        if 'masks' in truth and len(truth):  # they went the way of the boxes
            gap = truth.masks.get_bboxes('hbox').tensor - truth.bboxes.tensor
            gap[:, 2:] *= -1
            assert gap.min() > -12  # of a scene enlarged 5 times: a mask is within its box
            assert gap.max() < 12 or 'convnext' in name  # and fills it, unless a crop took a part
    assert flips == {False, True}
    if parts(name)[2] == '1x':
        assert shorts == {800} and proportions == {1.3}
    elif 'cmt' in name:
        assert shorts == set(range(480, 801, 32)) and proportions == {1.3}
    else:  # crops of other proportions, of which long ones end at 1333
        assert set(range(480, 801, 32)) <= shorts and len(proportions) > 3


def test_masks_are_trained_and_evaluated(scenes, tmp_path):
    """The stock config from images to mask AP, smaller only in its sizes."""
    cfg = on_scenes(config('mask_rcnn_cmt_ti_1x'), scenes)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.rcnn.score_thr = 0.  # after two steps no class may be likelier than .05
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 5
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        resize, = [step for step in loader.dataset.pipeline if step.type == 'Resize']
        resize.scale = (96, 64)
    cfg.train_cfg.max_epochs, cfg.work_dir = 1, str(tmp_path)
    cfg.update(param_scheduler=None, test_dataloader=None, test_cfg=None, test_evaluator=None)
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss_mask'].current())
    assert 'val/coco/bbox_mAP' in scalars and 'val/coco/segm_mAP' in scalars

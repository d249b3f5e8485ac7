"""The configs of configs/mmseg: their numbers, a step of each, and one through the commands."""
import copy
import functools
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, PARAM_SCHEDULERS, init_default_scope
from mmengine.structures import PixelData
from PIL import Image

import cmt_backbones
import tool
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.openmmlab import config_from_file

FOLDER = tool.ROOT / 'configs' / 'mmseg'
DEMO = 'upernet_cmt_ti_shapes'
SMALLEST = 'upernet_cmt_ti_160k_ade20k'

FACEBOOK = 'https://dl.fbaipublicfiles.com/convnext/convnext_'
GGJY = 'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_'
# ConvNeXt as in the official semantic_segmentation/configs/convnext and its README.
# crop, stride, fp16, lr, layers, drop path, width, weights, mIoU, mIoU with scales and flips
CONVNEXT = {
    't_160k_ade20k': (512, 341, True, 1e-4, 6, .4, 96, 'tiny_1k_224', 46.0, 46.7),
    's_160k_ade20k': (512, 341, True, 1e-4, 12, .3, 96, 'small_1k_224', 48.7, 49.6),
    'b_160k_ade20k': (512, 341, True, 1e-4, 12, .4, 128, 'base_1k_224', 49.1, 49.9),
    'b_in22k_160k_ade20k_640': (640, 426, True, 1e-4, 12, .4, 128, 'base_22k_224', 52.6, 53.1),
    'l_in22k_160k_ade20k_640': (640, 426, False, 1e-4, 12, .4, 192, 'large_22k_224', 53.2, 53.7),
    'xl_in22k_160k_ade20k_640': (640, 426, False, 8e-5, 12, .4, 256, 'xlarge_22k_224', 53.6, 54.0),
}
CMT = {  # drop path, width, weights
    'ti_160k_ade20k': (.1, 46, 'tiny'),
    'xs_160k_ade20k': (.08, 52, 'xs'),
    's_160k_ade20k': (.1, 64, 'small'),
    'b_160k_ade20k': (.25, 76, 'base'),
}
ADE20K = [f'upernet_convnext_{key}' for key in CONVNEXT] + [f'upernet_cmt_{key}' for key in CMT]


@functools.cache
def parse(name):
    return config_from_file(FOLDER / f'{name}.py')


def load(name):
    init_default_scope('mmseg')
    return copy.deepcopy(parse(name))


def test_nothing_is_left_out():
    found = {path.stem for path in FOLDER.glob('*.py') if 'dinov3' not in path.stem}  # see test_dinov3_configs.py
    assert found == {*ADE20K, DEMO}


# ------------------------------------------------------------------------- numbers


@pytest.mark.parametrize('name', [*ADE20K, DEMO])
def test_a_config_is_short_and_tells_its_command(name):
    lines = (FOLDER / f'{name}.py').read_text().splitlines()
    assert len(lines) <= (60 if name == DEMO else 40) and max(map(len, lines)) <= 100
    processes = 2 if name == DEMO else 8
    assert f'    tools/dist_train.sh configs/mmseg/{name}.py {processes}' in lines


@pytest.mark.parametrize('key', CONVNEXT)
def test_convnext_has_the_official_recipe(key):
    crop, stride, fp16, lr, layers, drop_path, width, weights, ss, ms = CONVNEXT[key]
    cfg = load(f'upernet_convnext_{key}')
    check_ade20k(cfg, crop, stride, width)
    assert cfg.optim_wrapper == dict(
        type='AmpOptimWrapper' if fp16 else 'OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, betas=(.9, .999), weight_decay=.05),
        constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=.9, decay_type='stage_wise', num_layers=layers))
    assert cfg.model.backbone == dict(
        type='ConvNeXt', arch=weights.split('_')[0], drop_path_rate=drop_path,
        init_cfg=dict(type='Pretrained', checkpoint=f'{FACEBOOK}{weights}.pth'))
    text = (FOLDER / f'upernet_convnext_{key}.py').read_text()
    assert f': {ss} mIoU, {ms} with scales and flips.' in text


@pytest.mark.parametrize('key', CMT)
def test_cmt_has_the_recipe_of_swin(key):
    drop_path, width, weights = CMT[key]
    cfg = load(f'upernet_cmt_{key}')
    check_ade20k(cfg, 512, 341, width)
    assert cfg.optim_wrapper == dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=6e-5, weight_decay=.01),
        paramwise_cfg=dict(norm_decay_mult=0.,
                           custom_keys={'relative_bias.table': dict(decay_mult=0.)}))
    arch = dict(xs='xsmall').get(weights, weights)
    assert cfg.model.backbone == dict(
        type='CMT', arch=arch, drop_path_rate=drop_path, norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint=f'{GGJY}{weights}.pth'))
    assert 'No published result.' in (FOLDER / f'upernet_cmt_{key}.py').read_text()


def check_ade20k(cfg, crop, stride, width):
    """What all recipes for ADE20K share."""
    head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert (head.type, head.channels, head.num_classes) == ('UPerHead', 512, 150)
    assert head.in_channels == [width, 2 * width, 4 * width, 8 * width]
    assert head.norm_cfg.type == 'SyncBN' and head.pool_scales == (1, 2, 3, 6)
    assert (auxiliary.type, auxiliary.channels, auxiliary.num_classes) == ('FCNHead', 256, 150)
    assert (auxiliary.in_index, auxiliary.in_channels) == (2, 4 * width)
    assert (head.loss_decode.loss_weight, auxiliary.loss_decode.loss_weight) == (1., .4)
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(crop, ) * 2, stride=(stride, ) * 2)
    assert cfg.model.data_preprocessor.size == cfg.data_preprocessor.size == (crop, crop)

    data = cfg.train_dataloader
    assert (data.batch_size, data.dataset.type) == (2, 'ADE20KDataset')
    resize, cut = data.dataset.pipeline[2:4]
    assert (resize.type, resize.scale, resize.ratio_range) == ('RandomResize', (4 * crop, crop),
                                                              (.5, 2.))
    assert (cut.type, cut.crop_size, cut.cat_max_ratio) == ('RandomCrop', (crop, crop), .75)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline[1].scale == (4 * crop, crop) and loader.batch_size == 1
    scales = [resize.scale for resize in cfg.tta_pipeline[1].transforms[0]]
    assert scales == [(4 * crop * q // 4, crop * q // 4) for q in range(2, 8)]
    assert [flip.prob for flip in cfg.tta_pipeline[1].transforms[1]] == [0., 1.]
    assert cfg.tta_model.type == 'SegTTAModel'

    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (160000, 16000)
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.max_keep_ckpts, checkpoint.save_best) == (3, 'mIoU')
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert [hook.type for hook in cfg.custom_hooks] == ['ResumableRandomness', 'SaveOnSigterm', 'FiniteLossHook']


def test_rates_follow_the_official_schedule():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-4)
    cfg = load(SMALLEST)
    schedulers = [PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=optimizer))
                  for s in cfg.param_scheduler]
    optimizer.step()  # PyTorch warns where it comes after the scheduler's
    for i in range(160000):
        # mmcv 1, lr_updater.py: `poly` with power 1 and min_lr 0; `linear` warmup.
        regular = 1e-4 * (1 - i / 160000)
        warmup = regular * (1 - (1 - i / 1500) * (1 - 1e-6)) if i < 1500 else regular
        # Ours ends a step earlier, in the warmup and in all.
        assert abs(optimizer.param_groups[0]['lr'] - warmup) < 1e-4 / 1499 + 1e-12
        for scheduler in schedulers:
            scheduler.step()


# ------------------------------------------------------------------------- models


def shrink(cfg, factor):
    """The same model for crops that are `factor` times smaller, from scratch."""
    cfg.model.backbone.init_cfg = None
    test = cfg.model.test_cfg
    if test.mode == 'slide':
        test.update({key: tuple(side // factor for side in test[key])
                     for key in ('crop_size', 'stride')})
    preprocessor = cfg.model.data_preprocessor
    preprocessor.size = tuple(side // factor for side in preprocessor.size)
    return preprocessor.size


def build(cfg):
    from mmseg.registry import MODELS
    return revert_sync_batchnorm(MODELS.build(cfg.model))


def batch(sizes, ori_shape=None, classes=150):
    """Random images, uint8 as loaders give them, with labels of which some are left open."""
    from mmseg.structures import SegDataSample
    images, samples = [], []
    for height, width in sizes:
        images.append(torch.randint(256, (3, height, width), dtype=torch.uint8))
        sample = SegDataSample(metainfo=dict(img_shape=(height, width),
                                             ori_shape=ori_shape or (height, width)))
        labels = torch.randint(classes, (1, height, width))
        labels[:, :3] = 255
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('name', [*ADE20K, DEMO])
def test_a_config_trains_and_predicts(name):
    cfg = load(name)
    height, width = shrink(cfg, 1 if name == DEMO else 8)
    model = build(cfg)
    classes = model.decode_head.num_classes
    check_optimizer(cfg, model)

    # The second is padded, as crops of small images are.
    sizes = [(height, width), (height - 8, width - 20)]
    data = model.data_preprocessor(batch(sizes, classes=classes), training=True)
    losses = model.train()(**data, mode='loss')
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite()
    loss.backward()
    for param_name, param in model.named_parameters():
        assert param.grad is not None and param.grad.isfinite().all(), param_name

    # Three windows by two, or the whole of it; then back to the size of the file.
    shape = (100, 75)
    image = batch([(height + height // 2, 2 * width)], shape, classes)
    with torch.no_grad():
        sample, = model.eval().test_step(image)
    logits = sample.seg_logits.data
    assert logits.shape == (classes, *shape) and logits.isfinite().all()
    assert torch.equal(sample.pred_sem_seg.data[0], logits.argmax(0))


def check_optimizer(cfg, model):
    """The rate and weight decay that each parameter gets."""
    cfg = cfg.optim_wrapper.to_dict()
    cfg['type'] = 'OptimWrapper'  # mixed precision is for GPUs
    constructor = dict(type=cfg.pop('constructor', 'DefaultOptimWrapperConstructor'),
                       optim_wrapper_cfg=cfg, paramwise_cfg=cfg.pop('paramwise_cfg', None))
    optimizer = OPTIM_WRAPPER_CONSTRUCTORS.build(constructor)(model).optimizer
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    assert len(groups) == len(list(model.parameters()))
    full = cfg['optimizer']
    if 'layer' in constructor['type'].lower():
        layers = constructor['paramwise_cfg']['num_layers']
        for stage in range(4):
            for part, layer in [(f'stages.{stage}.', stage + 1), (f'downsample_layers.{stage}.', 0)]:
                rates = {groups[id(p)]['lr'] for n, p in model.backbone.named_parameters()
                         if n.startswith(part)}
                assert rates == {full['lr'] * .9**(layers + 1 - layer)}
    for module_name, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            group = groups[id(param)]
            if module_name.startswith(('decode_head', 'auxiliary_head')):
                assert group['lr'] == full['lr']
            if constructor['paramwise_cfg'] is None:
                decays = True
            elif cfg_is_cmt(model):
                decays = name != 'table' and 'Norm' not in type(module).__name__
            else:
                decays = param.dim() > 1
            assert group['weight_decay'] == (full['weight_decay'] if decays else 0), module_name


def cfg_is_cmt(model):
    return isinstance(model.backbone, cmt_backbones.CMT)


def test_windows_of_512_at_full_size():
    cfg = load(SMALLEST)
    shrink(cfg, 1)
    model = build(cfg).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    with torch.no_grad():
        sample, = model.test_step(batch([(512, 600)]))
    assert seen == [(1, 3, 512, 512)] * 2 and sample.pred_sem_seg.shape == (512, 600)


# ------------------------------------------------------------------------- commands


@pytest.fixture(scope='module')
def ade(tmp_path_factory):
    """Drawn scenes where ADE20K has its photographs; 0 is the background, left open."""
    root = tmp_path_factory.mktemp('data') / 'ADEChallengeData2016'
    for split, count in (('training', 4), ('validation', 3)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, labels, _ = drawn_scenes.scene(np.random.default_rng(i), 64, 96)
            cv2.imwrite(str(root / 'images' / split / f'ADE_{i:08d}.jpg'), image)
            cv2.imwrite(str(root / 'annotations' / split / f'ADE_{i:08d}.png'), labels)
    return root


def options(ade):
    """The stock config on small images, for two steps that change something."""
    out = ['model.backbone.init_cfg=None', 'model.data_preprocessor.size=(64,64)',
           'model.test_cfg.crop_size=(64,64)', 'model.test_cfg.stride=(42,42)',
           'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'randomness.seed=1',
           'default_hooks.checkpoint.interval=2', 'optim_wrapper.optimizer.lr=0.01',
           'param_scheduler.0.start_factor=1.0',
           'train_dataloader.dataset.pipeline.2.scale=(256,64)',
           'train_dataloader.dataset.pipeline.3.crop_size=(64,64)']
    for split in ('train', 'val', 'test'):
        out += [f'{split}_dataloader.dataset.data_root={ade}',
                f'{split}_dataloader.num_workers=1']
        if split != 'train':
            out += [f'{split}_dataloader.dataset.pipeline.1.scale=(256,64)']
    for i in range(6):
        out += [f'tta_pipeline.1.transforms.0.{i}.scale=({64 * (i + 2)},{16 * (i + 2)})']
    return ['--cfg-options', *out]


def run(*command):
    done = subprocess.run([str(part) for part in command], cwd=tool.ROOT, text=True, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout[-3000:]


def logged(work_dir):
    """The last metrics that a run has written."""
    file = max(work_dir.glob('*/vis_data/*.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(file.read_text().splitlines()[-1])


def mean_iou(ade, folder):
    """mIoU in percent, from files alone: of the classes that are there or predicted."""
    confusion = np.zeros((151, 151), int)
    for path in sorted((ade / 'annotations' / 'validation').iterdir()):
        real, found = np.array(Image.open(path)), np.array(Image.open(folder / path.name))
        assert real.shape == found.shape and found.min() >= 1 and found.max() <= 150
        np.add.at(confusion, (real[real > 0], found[real > 0]), 1)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return 100 * np.mean(confusion.diagonal()[union > 0] / union[union > 0])


@pytest.fixture(scope='module')
def trained(ade, tmp_path_factory):
    """The work dir of two steps and a validation in two processes."""
    work_dir = tmp_path_factory.mktemp('trained')
    run('tools/dist_train.sh', FOLDER / f'{SMALLEST}.py', 2, '--work-dir', work_dir, *options(ade))
    return work_dir


def test_training_in_one_process(ade, tmp_path):
    run(sys.executable, 'tools/train.py', FOLDER / f'{SMALLEST}.py', '--work-dir', tmp_path,
        *options(ade))
    assert (tmp_path / 'iter_2.pth').is_file() and list(tmp_path.glob('best_mIoU_iter_2.pth'))
    assert logged(tmp_path)['mIoU'] >= 0


@pytest.mark.parametrize('tta', [False, True], ids=['two processes', 'one with tta'])
def test_the_metric_is_that_of_the_predictions(ade, trained, tta, tmp_path):
    config, checkpoint = FOLDER / f'{SMALLEST}.py', trained / 'iter_2.pth'
    command = (sys.executable, 'tools/test.py', config, checkpoint, '--tta') if tta else (
        'tools/dist_test.sh', config, checkpoint, 2)
    run(*command, '--out', tmp_path / 'predictions', '--work-dir', tmp_path / 'test', *options(ade))
    metrics, = (tmp_path / 'test').glob('*/*.json')
    metric = json.loads(metrics.read_text())['mIoU']
    assert metric == pytest.approx(mean_iou(ade, tmp_path / 'predictions'), abs=0.0051)
    assert metric > 0.1  # else it could be right by chance

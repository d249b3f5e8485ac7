"""Faults of images and annotations: what training does with them, and what tools/check_dataset.py says."""
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.dataset import Compose, pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from PIL import Image

import small_runs
from cmt_backbones.data.check import check_config
from cmt_backbones.training.resuming import Items

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def model():
    """RetinaNet with the whole CMT-Ti."""
    cfg = small_runs.config_from_file(ROOT / 'configs/mmdet/retinanet_cmt_ti_shapes.py').model
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg)


# ---------------------------------------------------------------------------- faults of detection data


def image_as(mode, suffix='.png'):
    def spoil(path, entry, annotations):
        entry['file_name'] = Path(entry['file_name']).with_suffix(suffix).name
        Image.open(path).convert(mode).save(path.with_suffix(suffix))
    return spoil


def sized(width, height):
    def spoil(path, entry, annotations):
        Image.new('RGB', (width, height), (90, 120, 30)).save(path)
        entry.update(width=width, height=height)
        annotations[:] = [dict(annotations[0], bbox=[0, 0, width, height], area=width * height)]
    return spoil


def content(change):
    def spoil(path, entry, annotations):
        path.write_bytes(change(path.read_bytes()))
    return spoil


def annotation(**values):
    def spoil(path, entry, annotations):
        annotations[:] = [dict(annotations[0], **values)]
    return spoil


def sixteen_bits(path, entry, annotations):
    entry['file_name'] = Path(entry['file_name']).with_suffix('.png').name
    Image.fromarray(np.full((64, 96), 40000, np.uint16)).save(path.with_suffix('.png'))


def turned(path, entry, annotations):
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    image.save(path, exif=exif)


# Some builds of OpenCV fill the rest with grey, others refuse the file.
jpeg = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))[1]
REFUSED = cv2.imdecode(jpeg[:-len(jpeg) // 10], cv2.IMREAD_COLOR) is None
TRUNCATED = 'cannot load IMAGE.*failed to load image' if REFUSED else 'trains'

# How it is spoiled; what training does: 'trains', 'left out' (the image or the annotation), or the error
# that it ends with; what the check says.
FAULTS = dict(
    truncated_jpeg=(content(lambda old: old[:-len(old) // 10]), TRUNCATED,
                    'error: IMAGE: the image cannot be read whole'),
    empty_file=(content(lambda old: b''), 'cannot load IMAGE', 'error: IMAGE: the file is empty'),
    no_image=(content(lambda old: b'<html>'), 'cannot load IMAGE.*failed to load image',
              'error: IMAGE: .*cannot be read'),
    missing_file=(lambda path, *_: path.unlink(), 'cannot load IMAGE.*No such file',
                  'error: IMAGE: there is no such file'),
    grey=(image_as('L'), 'trains', 'warning: IMAGE: has 1 channels'),
    palette=(image_as('P'), 'trains', 'warning: IMAGE: has 1 channels'),
    rgba=(image_as('RGBA'), 'trains', 'warning: IMAGE: has 4 channels'),
    cmyk=(image_as('CMYK', '.jpg'), 'trains', 'warning: IMAGE: has 4 channels'),
    sixteen_bits=(sixteen_bits, 'trains', 'warning: IMAGE: has values of (uint16|int32)'),
    turned_by_exif=(turned, 'trains', 'error: IMAGE: is 64x96, and its annotations say 96x64'),
    one_pixel=(sized(1, 1), 'trains', 'warning: IMAGE: is 1x1 pixels'),
    panorama=(sized(20000, 30), 'cannot load IMAGE',
              r'error: IMAGE: is 20000x30 pixels: resized to \(128, 96\), nothing is left'),
    tall=(sized(30, 2000), 'trains', 'warning: IMAGE: is 30x2000 pixels'),
    other_size=(lambda path, entry, _: entry.update(width=400), 'trains',
                'error: IMAGE: is 96x64, and its annotations say 400x64'),
    no_annotations=(lambda path, entry, annotations: annotations.clear(), 'left out',
                    'warning: IMAGE: has no annotations of the classes'),
    box_outside=(annotation(bbox=[200, 10, 30, 30]), 'left out',
                 r'warning: IMAGE: .* lies outside of the image of 96x64'),
    box_half_outside=(annotation(bbox=[80, 10, 60, 30]), 'trains',
                      'warning: IMAGE: .* reaches out of the image'),
    box_without_area=(annotation(bbox=[10, 10, 0, 30], area=0), 'left out', 'warning: IMAGE: .* has no area'),
    box_not_a_number=(annotation(bbox=[float('nan'), 10, 20, 30]), 'left out',
                      'error: IMAGE: .* no box of four numbers'),
    polygon_without_area=(annotation(segmentation=[[10, 10, 20, 20, 30, 30]]), 'trains',
                          'warning: IMAGE: .* a polygon without area'),
    polygon_of_two_points=(annotation(segmentation=[[10, 10, 20, 20]]), 'trains',
                           'warning: IMAGE: .* not at least 3 points'),
    mask_of_other_size=(annotation(segmentation=dict(size=[10, 10], counts=[100])), 'cannot load IMAGE',
                        r'error: IMAGE: .* a mask of \[10, 10\]'),
    unknown_category=(annotation(category_id=99), 'left out',
                      'error: IMAGE: .* is of category 99, which its file'),
)


def spoiled(folder, spoil):
    """Drawn scenes of which the first one is spoiled; its path."""
    small_runs.draw(folder, images=3, val=1)
    file = folder / 'annotations/train.json'
    scenes = json.loads(file.read_text())
    entry = scenes['images'][0]
    path = folder / 'images/train' / entry['file_name']
    if (entry['width'], entry['height']) == (64, 96):
        Image.open(path).resize((96, 64)).save(path)
        entry.update(width=96, height=64)
    of_it = [dict(a, bbox=[10, 10, 40, 30], area=1200) for a in scenes['annotations']
             if a['image_id'] == entry['id']]
    others = [a for a in scenes['annotations'] if a['image_id'] != entry['id']]
    spoil(path, entry, of_it)
    scenes['annotations'] = of_it + others
    file.write_text(json.dumps(scenes))
    return folder / 'images/train' / entry['file_name']


def build(cfg, split='train'):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


def assert_trains(model, samples):
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-6))
    log = model.train().train_step(pseudo_collate(samples), optim)
    assert log['loss'].isfinite()


@pytest.mark.parametrize('fault', FAULTS)
def test_detection(fault, model, tmp_path):
    spoil, outcome, said = FAULTS[fault]
    path = spoiled(tmp_path / 'scenes', spoil)
    cfg = small_runs.detector(tmp_path / 'scenes', tmp_path)
    cfg.train_dataloader.dataset.filter_cfg.min_size = 0  # mmdet would leave out images below 32 pixels
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True

    problems = check_config(cfg, 'train', processes=1, progress=lambda images, total: images)
    expected = said.replace('IMAGE', re.escape(str(path)))
    assert any(re.match(expected, str(problem)) for problem in problems), problems

    dataset = build(cfg)
    listed = [dataset.get_data_info(i) for i in range(len(dataset))]
    where = [i for i, info in enumerate(listed) if info['img_path'] == str(path)]
    if outcome == 'left out':
        assert not where or not listed[where[0]]['instances']
    elif outcome == 'trains':
        assert_trains(model, Items(dataset)([where[0], 1]))
    else:
        with pytest.raises(RuntimeError, match=outcome.replace('IMAGE', re.escape(str(path)))):
            Items(dataset)([where[0]])


@pytest.mark.parametrize('size', [(1, 1), (20000, 30), (30, 4000)])
def test_predicting_on_images_of_extreme_sizes(size, model, tmp_path):
    """At COCO's test scale."""
    path = tmp_path / 'image.png'
    Image.new('RGB', size, (90, 120, 30)).save(path)
    cfg = small_runs.config_from_file(ROOT / 'configs/mmdet/retinanet_cmt_ti_1x.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = [step for step in cfg.test_pipeline if step.type != 'LoadAnnotations']
        if size == (1, 1):
            pipeline[1].scale = (128, 128)  # to 800x800 like any other; smaller here for time
        sample = Compose(pipeline)(dict(img_path=str(path), img_id=0))
        with torch.no_grad():
            result, = model.eval().test_step(pseudo_collate([sample]))
    assert result.pred_instances.scores.isfinite().all()
    assert result.pred_instances.bboxes.isfinite().all()


def said(cfg, split='train'):
    return [str(p) for p in check_config(cfg, split, processes=1, progress=lambda images, total: images)]


def test_annotation_files_and_classes(tmp_path):
    scenes = small_runs.draw(tmp_path / 'scenes', images=2, val=1)
    file = scenes / 'annotations/train.json'
    good = file.read_text()
    cfg = small_runs.detector(scenes, tmp_path)
    assert said(cfg) == [] and said(cfg, 'val') == []

    cfg.model.bbox_head.num_classes = 4
    assert said(cfg)[0].startswith('error: model.bbox_head: num_classes is 4, and the dataset has 5 classes')
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'EMAHook']
    with pytest.raises(AssertionError, match=r'`num_classes` \(4\)'):
        small_runs.train(cfg)

    cfg = small_runs.detector(scenes, tmp_path)
    cfg.train_dataloader.dataset.metainfo.classes = ('ellipse', 'rectangle', 'triangle', 'star', 'zebra')
    assert f"error: {file}: has no category 'zebra', a class of the config: labels would shift" in said(cfg)
    assert any(line.startswith(f"warning: {file}: annotations of 'cross' are left out") for line in said(cfg))

    cfg = small_runs.detector(scenes, tmp_path)
    for change, expected in (
            (lambda c: c['annotations'].append(c['annotations'][0]), 'has several annotations with the id'),
            (lambda c: c['annotations'].append(dict(c['annotations'][0], id=999, image_id=999)),
             'annotation 999 is of image 999, which is not there'),
            (lambda c: c.pop('categories'), "is no annotation file in COCO's format")):
        scenes_read = json.loads(good)
        change(scenes_read)
        file.write_text(json.dumps(scenes_read))
        assert any(line.startswith(f'error: {file}: {expected}') for line in said(cfg)), expected
    file.write_text(good[:100])
    assert f"error: {file}: is no annotation file in COCO's format" in said(cfg)[0]

    file.write_text(json.dumps(dict(json.loads(good), annotations=[])))
    assert f'error: {file}: no image has annotations of the classes of the config' in said(cfg)


# ---------------------------------------------------------------------------- segmentation


def labels(change):
    def spoil(image, label_map):
        old = np.array(Image.open(label_map))
        Image.fromarray(change(old)).save(label_map)
    return spoil


def some(value):
    def change(old):
        old[:10, :10] = value
        return old
    return labels(change)


LABEL_FAULTS = dict(
    missing_map=(lambda image, label_map: label_map.unlink(), False, 'error: MAP: there is no such file'),
    torn_map=(lambda image, label_map: label_map.write_bytes(label_map.read_bytes()[:60]), False,
              'error: MAP: the image cannot be read whole'),
    other_size=(labels(lambda old: old[:20, :30]), False, 'error: MAP: is 30x20, and its image'),
    colours=(labels(lambda old: np.stack([old] * 3, -1)), False, 'error: MAP: has 3 channels'),
    label_beyond=(some(6), False, r'error: MAP: has labels beyond the 6 classes: 6 \(100 pixels\)'),
    ignored_label=(some(255), False, None),
    ignored_zero=(some(0), True, None),
    label_beyond_after_reduction=(some(7), True,
                                  r'error: MAP: has labels beyond the 6 classes: 7 \(100 pixels\)'),
    last_label_after_reduction=(some(6), True, None),
    nothing_labelled=(labels(lambda old: np.full_like(old, 255)), False, 'warning: MAP: has no labels but'),
    truncated_image=(lambda image, label_map: image.write_bytes(image.read_bytes()[:-200]), False,
                     'error: IMAGE: the image cannot be read whole'),
    grey_image=(lambda image, label_map: Image.open(image).convert('L').save(image), False,
                'warning: IMAGE: has 1 channels'),
)


@pytest.mark.parametrize('fault', LABEL_FAULTS)
def test_segmentation(fault, tmp_path):
    spoil, reduce_zero_label, expected = LABEL_FAULTS[fault]
    scenes = small_runs.draw(tmp_path / 'scenes', images=2, val=1)
    image = sorted((scenes / 'images/train').iterdir())[0]
    label_map = scenes / 'labels/train' / f'{image.stem}.png'
    spoil(image, label_map)
    cfg = small_runs.segmentor(scenes, tmp_path)
    cfg.train_dataloader.dataset.reduce_zero_label = reduce_zero_label
    if expected is None:
        assert said(cfg) == []
    else:
        found, = said(cfg)
        for name, path in (('MAP', label_map), ('IMAGE', image)):
            expected = expected.replace(name, re.escape(str(path)))
        assert re.match(expected, found)


def test_heads_of_a_segmentor(tmp_path):
    cfg = small_runs.segmentor(small_runs.draw(tmp_path / 'scenes', images=2, val=1), tmp_path)
    cfg.model.auxiliary_head.num_classes = 5
    assert said(cfg) == ['error: model.auxiliary_head: num_classes is 5, and the dataset has 6 classes: '
                         'background, ellipse, rectangle, ...']


# ---------------------------------------------------------------------------- the command


def test_the_command(tmp_path):
    path = spoiled(tmp_path / 'scenes', FAULTS['truncated_jpeg'][0])
    small_runs.detector(tmp_path / 'scenes', tmp_path).dump(tmp_path / 'small.py')
    command = [sys.executable, 'tools/check_dataset.py', str(tmp_path / 'small.py'), '--processes', '2']
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1, found.stderr
    assert f'error: {path}: ' in found.stdout and found.stdout.endswith('1 errors, 0 warnings\n')
    assert 'checking train: 100%' in found.stderr and 'checking val: 100%' in found.stderr
    found = subprocess.run([*command, '--split', 'val'], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.endswith('0 errors, 0 warnings\n'), found.stderr

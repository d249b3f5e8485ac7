"""The mistakes of a first hour: what a run says of each before it starts, in one line."""
import copy
import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

import small_runs
from cmt_backbones.openmmlab import ConfigError
from cmt_backbones.training.preflight import preflight


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return small_runs.draw(tmp_path_factory.mktemp('drawn') / 'scenes', images=3, val=1)


@pytest.fixture
def scenes(drawn, tmp_path):
    """Scenes of one's own, to be spoiled."""
    for path in drawn.rglob('*'):
        if path.is_file():
            copied = tmp_path / 'scenes' / path.relative_to(drawn)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(path.read_bytes())
    return tmp_path / 'scenes'


def annotations(change):
    """A mistake in the annotation file of the training images."""
    def spoil(cfg, scenes):
        file = scenes / 'annotations/train.json'
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    return spoil


def option(name, value):
    def spoil(cfg, scenes):
        cfg.merge_from_dict({name: value})
    return spoil


def of_training_data(**values):
    def spoil(cfg, scenes):
        cfg.train_dataloader.dataset.update(values)
    return spoil


def image(content):
    def spoil(cfg, scenes):
        path, = scenes.glob('images/train/*0.jpg')
        path.write_bytes(content) if content is not None else path.unlink()
    return spoil


def transparent(cfg, scenes):
    for path in scenes.glob('images/train/*.jpg'):
        Image.open(path).convert('RGBA').save(path.with_suffix('.png'))
    annotations(lambda c: [entry.update(file_name=entry['file_name'].replace('.jpg', '.png'))
                           for entry in c['images']])(cfg, scenes)
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'unchanged'


def grey(cfg, scenes):
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'grayscale'


def masks(cfg, scenes):
    annotations(lambda c: [a.pop('segmentation') for a in c['annotations']])(cfg, scenes)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True


def default_classes(cfg, scenes):
    cfg.train_dataloader.dataset.pop('metainfo')


# Each is a mistake and the line that it gets, a pattern.
DETECTOR = dict(
    neck_channels=(option('model.neck.in_channels', [8, 16, 24]),
                   r'model.neck: in_channels=\[8, 16, 24\] does not fit: this CMT with out_indices=\(1, 2, 3\) gives '
                   r'in_channels=\[16, 24, 32\]'),
    channels_of_another_arch=(option('model.backbone.arch', 'tiny'),
                              r"model.neck: .* does not fit: CMT 'tiny' .* gives in_channels=\[92, 184, 368\]"),
    out_indices=(option('model.backbone.out_indices', (0, 1, 2, 3)),
                 r'model.neck: takes 3 maps .* gives 4: change out_indices, or write in_channels=\[8, 16, 24, 32\]'),
    unknown_arch=(option('model.backbone.arch', 'huge'),
                  r"model.backbone: arch must be one of \['base', 'small', 'tiny', 'xsmall'\]"),
    unknown_option=(option('model.backbone.depth', 50), "model.backbone: .*unexpected keyword argument 'depth'"),
    frozen_stages=(option('model.backbone.frozen_stages', 7), 'model.backbone: frozen_stages must be -1 .*, not 7'),
    no_pretrained_file=(option('model.backbone.init_cfg', dict(type='Pretrained', checkpoint='nowhere.pth')),
                        'model.backbone.init_cfg: there is no file nowhere.pth; init_cfg=None trains from scratch'),
    num_classes=(option('model.bbox_head.num_classes', 4),
                 'model.bbox_head: num_classes is 4, and the dataset has 5 classes: ellipse, rectangle, triangle, ...'),
    class_that_no_annotation_has=(
        of_training_data(metainfo=dict(classes=('ellipse', 'rectangle', 'triangle', 'star', 'balloon'))),
        r"train.json: has no category 'balloon', of the classes of the config: the file has metainfo=dict\(classes="
        r"\('ellipse', 'rectangle', 'triangle', 'star', 'cross'\)\)"),
    classes_of_coco=(default_classes, "train.json: has no category 'person' and 79 more, of the classes"),
    no_comma=(of_training_data(metainfo=dict(classes=('balloon'))),
              r"train_dataloader.dataset.metainfo: classes is the string 'balloon', and must be a tuple of names: one "
              r"name has a comma behind it, \('balloon',\)"),
    category_id_without_a_category=(
        annotations(lambda c: c['annotations'][-1].update(category_id=99)),
        'train.json: has annotations of category 99, which its "categories" do not define'),
    annotation_of_no_image=(annotations(lambda c: c['annotations'][0].update(image_id=99)),
                            'train.json: annotation [0-9]+ is of image 99, which is not there'),
    twice_the_same_annotation=(annotations(lambda c: c['annotations'].append(c['annotations'][0])),
                               'train.json: has several annotations with the id'),
    no_annotations=(annotations(lambda c: c['annotations'].clear()),
                    'train.json: no image has annotations of the classes of the config'),
    no_categories=(annotations(lambda c: c.pop('categories')), "train.json: is no annotation file in COCO's format"),
    no_annotation_file=(of_training_data(ann_file='annotations/nowhere.json'),
                        'nowhere.json: there is no such annotation file .*: data_root and ann_file'),
    no_masks=(masks, r'train.json: has boxes alone, and the pipeline asks for masks \(with_mask=True\): take a '
              'detector without a mask head'),
    folder_of_the_images=(of_training_data(data_prefix=dict(img='images/nowhere/')),
                          'images/nowhere/000000.jpg: there is no such file'),
    missing_image=(image(None), '000000.jpg: there is no such file'),
    empty_image=(image(b''), '000000.jpg: the file is empty'),
    no_image=(image(b'<html>'), '000000.jpg: the image cannot be read whole'),
    four_channels=(transparent, r"000000.png: is read with 4 channels, and the model takes 3 .*: LoadImageFromFile's "
                   "color_type='color' reads any image with 3"),
    one_channel=(grey, '000000.jpg: is read with 1 channels, and the model takes 3'),
    size_of_an_image=(annotations(lambda c: c['images'][0].update(width=400)),
                      '000000.jpg: is [0-9x]+, and its annotations say 400x'),
    evaluated_on_another_file=(option('val_evaluator.ann_file', 'annotations/test.json'),
                               'val_evaluator: its ann_file is annotations/test.json, and the images come from '),
)


@pytest.mark.parametrize('mistake', DETECTOR)
def test_a_detector_is_refused_in_one_line(mistake, scenes, tmp_path):
    spoil, line = DETECTOR[mistake]
    cfg = small_runs.detector(scenes, tmp_path)
    spoil(cfg, scenes)
    with pytest.raises(ConfigError, match=line) as caught:
        preflight(cfg, ('train', 'val'))
    assert '\n' not in str(caught.value)


def no_maps(cfg, scenes):
    cfg.train_dataloader.dataset.data_prefix.img_path = 'annotations'


def wrong_label(cfg, scenes):
    path, = scenes.glob('labels/train/*0.png')
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    labels[:2, :2] = 17
    cv2.imwrite(str(path), labels)


def coloured_map(cfg, scenes):
    path, = scenes.glob('labels/train/*0.png')
    cv2.imwrite(str(path), np.zeros((*cv2.imread(str(path)).shape[:2], 3), np.uint8))


def three_maps(cfg, scenes):
    cfg.model.backbone.out_indices = (1, 2, 3)
    cfg.model.auxiliary_head.in_index = 1


def alone_with_batch_norm(cfg, scenes):
    cfg.train_dataloader.batch_size = 1
    cfg.model.decode_head.norm_cfg = dict(type='SyncBN')


SEGMENTOR = dict(
    head_channels=(option('model.decode_head.in_channels', [46, 92, 184, 368]),
                   r'model.decode_head: in_channels=\[46, .* does not fit in_index=\[0, 1, 2, 3\]: this CMT .* gives '
                   r'in_channels=\[8, 16, 24, 32\]'),
    auxiliary_channels=(option('model.auxiliary_head.in_channels', 184),
                        'model.auxiliary_head: in_channels=184 does not fit in_index=2: .* gives in_channels=24'),
    map_that_is_not_there=(three_maps,
                           r'model.decode_head: in_index=\[0, 1, 2, 3\] asks for a map that is not there: .* gives 3'),
    label_without_a_class=(wrong_label, r'000000.png: has labels beyond the 6 classes: 17 \(4 pixels\)'),
    map_in_colours=(coloured_map, '000000.png: has 3 channels: a label map has one'),
    no_images=(no_maps, r'has no image \*\.jpg'),
    one_image_for_batch_norms=(alone_with_batch_norm, 'train_dataloader: batch_size=1 leaves the BatchNorms of the '
                               'pyramid pooling a single value in training: take 2 or more'),
)


@pytest.mark.parametrize('mistake', SEGMENTOR)
def test_a_segmentor_is_refused_in_one_line(mistake, scenes, tmp_path):
    spoil, line = SEGMENTOR[mistake]
    cfg = small_runs.segmentor(scenes, tmp_path)
    spoil(cfg, scenes)
    with pytest.raises(ConfigError, match=line) as caught:
        preflight(cfg, ('train', 'val'))
    assert '\n' not in str(caught.value)


def warm_up(cfg, scenes):
    cfg.param_scheduler[0].end = 500


def milestones(cfg, scenes):
    cfg.param_scheduler[1].milestones = [8, 11]


def anew_without_statistics(cfg, scenes):
    cfg.model.backbone.norm_eval = True


def unread_map(cfg, scenes):
    cfg.model.backbone.out_indices = (0, 1, 2, 3)
    cfg.model.neck.update(in_channels=[8, 16, 24, 32], start_level=1)


@pytest.mark.parametrize('change, line', [
    (warm_up, r'param_scheduler\[0\]: warms up for 500 iterations, and the run has 4: write param_scheduler.0.end=1'),
    (milestones, r'param_scheduler\[1\]: the milestones \[8, 11\] lie behind the end of the run, after 2 epochs'),
    (anew_without_statistics, 'model.backbone: norm_eval=True keeps the statistics of BatchNorms that never saw'),
    (unread_map, 'model.neck: start_level=1 leaves maps of the backbone unread')])
def test_what_is_unwise_is_a_warning(change, line, drawn, tmp_path):
    cfg = small_runs.detector(drawn, tmp_path)
    cfg.model.backbone.norm_eval = False
    cfg.param_scheduler[0].end = 1
    assert preflight(cfg, ('train', 'val')) == []
    change(cfg, drawn)
    warning, = preflight(cfg, ('train', 'val'))
    assert re.match(line, warning)


def test_many_errors_are_counted(scenes, tmp_path):
    for path in scenes.glob('images/train/*'):
        path.unlink()
    annotations(lambda c: (c['annotations'].append(c['annotations'][0]), c['images'].append(c['images'][0]),
                           c['annotations'][1].update(image_id=99),
                           c['annotations'][2].update(image_id=98)))(None, scenes)
    cfg = small_runs.detector(scenes, tmp_path)
    cfg.model.neck.in_channels = [1, 2]
    cfg.model.bbox_head.num_classes = 9
    cfg.val_dataloader.dataset.ann_file = 'nowhere'
    cfg.val_evaluator.ann_file = ''
    with pytest.raises(ConfigError) as caught:
        preflight(cfg, ('train', 'val'))
    lines = str(caught.value).split('\n')
    assert len(lines) == 6 and re.fullmatch(r'\.\.\. and [0-9]+ more: tools/check_dataset.py lists all', lines[-1])


@pytest.mark.parametrize('config', ['mmdet/retinanet_cmt_s_1x.py', 'mmdet/cascade_mask_rcnn_convnext_t_ms_3x.py',
                                    'mmseg/upernet_cmt_b_160k_ade20k.py'])
def test_the_models_of_our_configs_are_sound(config):
    cfg = copy.deepcopy(small_runs.read(config))
    assert preflight(cfg, ()) == []

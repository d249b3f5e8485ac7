"""Truth beside detections, by tools/draw_detections.py."""
import pickle

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import tool
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.visualization import detections

CONFIG = """
default_scope = 'mmdet'
test_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root={root!r}, ann_file='annotations/val.json',
    data_prefix=dict(img='images/val/'), metainfo=dict(classes={classes!r}), test_mode=True,
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale=(128, 96), keep_ratio=True),
              dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape'))]))
"""


def picture(path):
    """A picture (H, W, 3) of more than 20 colours."""
    image = cv2.imread(str(path))
    assert len(np.unique(image @ [1, 256, 65536])) > 20
    return image


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A data set of 3 images for testing, and its config."""
    folder = tmp_path_factory.mktemp('detections')
    drawn_scenes.make_shapes(folder / 'data', 1, 3, 0, [(256, 192)])
    config = folder / 'config.py'
    config.write_text(CONFIG.format(root=str(folder / 'data'), classes=drawn_scenes.CLASSES))
    return config


def predict(config, file, masks=False, score=0.9):
    """Writes the truth, and an unsure box, as a detector's predictions by mmdet's own means."""
    from mmdet.evaluation import DumpDetResults
    from mmengine.config import Config
    from mmengine.structures import InstanceData
    dataset = detections.test_data(Config.fromfile(config))
    samples = []
    for i in range(len(dataset)):
        real = detections.truth(dataset.get_data_info(i))
        boxes = np.concatenate([[[0, 0, 50, 50]], real['bboxes']])
        found = InstanceData(bboxes=torch.tensor(boxes).float(),
                             labels=torch.tensor([0, *real['labels']]),
                             scores=torch.tensor([0.1] + [score] * len(real['labels'])))
        if masks:
            found.masks = torch.tensor(np.stack([np.zeros((192, 256), bool), *real['masks']]))
        sample = dataset[i]['data_samples']
        sample.pred_instances = found
        samples.append(sample.to_dict())
    metric = DumpDetResults(out_file_path=str(file))
    metric.process({}, samples)
    metric.evaluate(len(samples))
    return str(file)


@pytest.mark.parametrize('masks', [False, True])
def test_truth_and_detections_are_drawn_side_by_side(shapes, masks, tmp_path):
    predictions, out = predict(shapes, tmp_path / 'p.pkl', masks), tmp_path / 'out'
    tool.run('draw_detections', shapes, predictions, '--out', out)
    names = ['000000.png', '000001.png', '000002.png', 'sheet.png']
    assert sorted(path.name for path in out.iterdir()) == names
    sheet = picture(out / 'sheet.png')
    for i in range(3):
        pair = picture(out / f'{i:06d}.png')
        head, width = pair.shape[0] - 192 * 2, 256 * 2  # enlarged twice
        left, right = pair[head:, :width], pair[head:, -width:]
        raw = cv2.imread(str(shapes.parent / 'data' / 'images' / 'val' / f'{i:06d}.jpg'))
        plain = cv2.resize(raw, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        changed = np.any(left != plain, axis=2)
        assert 0.005 < changed.mean() < 0.9
        # The same boxes, and the unsure one not; only the scores beside the names differ.
        assert np.any(left != right, axis=2).mean() < 0.05
        assert np.any(left != right)
    assert sheet.shape[0] > 2 * pair.shape[0] and sheet.shape[1] > 2 * pair.shape[1]


def test_thresholds_and_numbers_of_images_are_kept_to(shapes, tmp_path):
    predictions, out = predict(shapes, tmp_path / 'p.pkl'), tmp_path / 'out'
    tool.run('draw_detections', shapes, predictions, '--out', out, '--images', '1', '--score-thr', '0.95')
    assert {p.name for p in out.iterdir()} == {'000000.png', 'sheet.png'}
    right = picture(out / '000000.png')[-192 * 2:, -256 * 2:]
    raw = cv2.imread(str(shapes.parent / 'data' / 'images' / 'val' / '000000.jpg'))
    plain = cv2.resize(raw, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(right, plain)  # nothing is that sure


def test_predictions_come_the_surest_first_in_image_pixels():
    scores, masks = torch.tensor([0.3, 0.9, 0.5]), np.zeros((3, 4, 6), np.uint8)
    masks[1, :2] = 1
    from mmdet.structures.mask import encode_mask_results
    found = detections.detections(dict(ori_shape=(4, 6), pred_instances=dict(
        bboxes=torch.arange(12.).view(3, 4), labels=torch.tensor([2, 0, 1]), scores=scores,
        masks=encode_mask_results(masks))), 0.4)
    assert found['labels'].tolist() == [0, 1]
    assert found['bboxes'].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert np.array_equal(found['masks'][0], masks[1].astype(bool))


def test_masks_in_every_form_of_coco():
    runs = dict(size=[2, 3], counts=[0, 1, 1, 1, 3])  # column by column, what is off first
    compressed = coco_mask.frPyObjects(runs, 2, 3)
    for mask in ([[0, 0, 2, 0, 2, 1, 0, 1]], runs, compressed):
        assert detections.decode(mask, 2, 3).astype(int).tolist() == [[1, 1, 0], [0, 0, 0]]


def test_predictions_of_something_else_are_refused_with_a_reason(shapes, tmp_path):
    predictions = pickle.loads(open(predict(shapes, tmp_path / 'p.pkl'), 'rb').read())

    def refusal(content, size=None):
        file = tmp_path / 'q.pkl'
        file.write_bytes(pickle.dumps(content)[:size])
        with pytest.raises(SystemExit) as error:
            tool.run('draw_detections', shapes, file, '--out', tmp_path / 'out')
        return str(error.value)

    assert 'whole pickle' in refusal(predictions, size=-20)
    assert 'no list of predictions' in refusal([])
    assert 'is not in the test data' in refusal([dict(predictions[0], img_id=99)])
    assert 'is not in the test data' in refusal([dict(predictions[0], img_path='elsewhere.jpg')])
    assert 'of a detector?' in refusal([dict(img_id=0, pred_sem_seg=None)])
    predictions[0]['pred_instances'].update(labels=predictions[0]['pred_instances']['labels'] + 70)
    assert 'more than the 5 classes' in refusal(predictions)
    with pytest.raises(SystemExit, match='there is no file'):
        tool.run('draw_detections', shapes, 'nowhere.pkl', '--out', tmp_path / 'o')


def test_photos_of_phones_become_pictures_for_people():
    image = np.zeros((3024, 4032, 3), np.uint8)
    box = np.array([[1000., 500, 3000, 2500]])
    picture = detections.draw(image, dict(bboxes=box, labels=np.array([1])), ('a', 'b'), 'truth')
    assert picture.size == (1600, 1200 + 24)
    edge = np.asarray(picture)[24 + 500, :, :].max(1)
    assert abs(np.flatnonzero(edge > 200)[0] - 1000 * 1600 / 4032) <= 2
    cell = detections.draw(image, dict(bboxes=box, labels=np.array([1])), ('a', 'b'), 'truth', 640)
    assert cell.size == (640, 480 + 24)


def test_masks_of_one_class_are_told_apart():
    alike = detections.colours_of([3] * 6, apart=False)
    shades = detections.colours_of([3, 1, 3, 3, 3, 1], apart=True)
    assert len({*alike}) == 1 and shades[0] == alike[0]
    assert min(np.abs(np.subtract(shades[i], shades[j])).sum()
               for i, j in ((0, 2), (0, 3), (2, 3), (2, 4), (3, 4), (1, 5))) > 60


def test_a_title_fits_over_a_narrow_picture():
    from cmt_backbones.visualization.panels import titled
    wide, narrow = (np.asarray(titled(np.zeros((9, width, 3), np.uint8), 'detections (score ≥ 0.4)'))[:24]
                    for width in (400, 160))
    assert (narrow[:, -4:] == 255).all() and (narrow < 128).any() and (wide < 128).any()

"""The pictures of tools/plot_training.py and tools/draw_detections.py."""
import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.visualization import LocalVisBackend
from pycocotools import mask as coco_mask

import tool
from cmt_backbones.data import shapes as drawn_scenes

plot_training = tool.load('plot_training')
draw_detections = tool.load('draw_detections')


def picture(path):
    """A picture (H, W, 3) of more than 20 colours."""
    image = cv2.imread(str(path))
    assert len(np.unique(image @ [1, 256, 65536])) > 20
    return image


# ------------------------------------------------------------------------- curves


def lines(*records):
    return '\n'.join(json.dumps(record) for record in records) + '\n'


def train(step, loss, **others):
    return dict(lr=0.01 / step, loss=loss, loss_cls=loss / 2, iter=step, step=step, **others)


EPOCHS = [train(10, 2.0, epoch=1), train(20, 1.5, epoch=1), {'coco/bbox_mAP': 0.1, 'step': 1},
          train(30, 1.2, epoch=2), {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_s': -1.0, 'step': 2}]


def test_a_log_by_epochs():
    series = plot_training.read_scalars(lines(*EPOCHS))
    assert series == {('loss', 'iteration'): {10: 2.0, 20: 1.5, 30: 1.2},
                      ('lr', 'iteration'): {10: 0.01 / 10, 20: 0.01 / 20, 30: 0.01 / 30},
                      ('coco/bbox_mAP', 'epoch'): {1: 0.1, 2: 0.2}}
    assert plot_training.read_scalars(lines(*EPOCHS), 'no such metric').keys() == {
        ('loss', 'iteration'), ('lr', 'iteration')}


@pytest.mark.parametrize('logged_step, drawn_at', [(20, 20), (23, 23), (0, 20), (1, 20)])
def test_a_log_by_iterations_that_may_count_validations_otherwise(logged_step, drawn_at):
    log = lines(train(10, 2.0), train(20, 1.0), dict(mIoU=41.5, aAcc=80, step=logged_step))
    assert plot_training.read_scalars(log)['mIoU', 'iteration'] == {drawn_at: 41.5}


def test_what_is_no_point_of_a_curve_is_left_out():
    alone = lines({'coco/bbox_mAP': 0.7, 'step': 0})  # a validation without a training
    assert plot_training.read_scalars(alone) == {}
    log = lines(train(10, float('nan')), train(20, 1.0, base_lr=0.5)) + '{"loss": 0.9, "it'
    series = plot_training.read_scalars(log)
    assert series['loss', 'iteration'] == {20: 1.0}
    assert series['lr', 'iteration'][20] == 0.5  # not that of the first of several layers


def test_a_resumed_run_overrides_what_it_did_again(tmp_path):
    resumed = [train(20, 1.4, epoch=1), {'coco/bbox_mAP': 0.15, 'step': 1}, train(30, 1.1, epoch=2)]
    # The second to be written is the first by its timestamp.
    for timestamp, records in [('20260102_000000', resumed), ('20260101_000000', EPOCHS)]:
        backend = LocalVisBackend(str(tmp_path / timestamp / 'vis_data'))
        for record in records:
            backend.add_scalars(record)
    series = plot_training.read_run(tmp_path)
    assert series['loss', 'iteration'] == {10: 2.0, 20: 1.4, 30: 1.1}
    # The second epoch of the first run is no part of the second's past.
    assert series['coco/bbox_mAP', 'epoch'] == {1: 0.15}


def write_run(work_dir, *records):
    folder = work_dir / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(lines(*records))
    return str(work_dir)


def test_the_curves_of_several_runs_become_one_picture(tmp_path):
    runs = [write_run(tmp_path / name / 'run', *EPOCHS) for name in 'ab']
    runs.append(write_run(tmp_path / 'by_iterations', train(10, 3.0), dict(mIoU=1.0, step=10)))
    plot_training.main([runs[0], '--out', str(tmp_path / 'one.png')])
    plot_training.main([*runs, '--out', str(tmp_path / 'new' / 'three.png')])
    one, three = picture(tmp_path / 'one.png'), picture(tmp_path / 'new' / 'three.png')
    assert one.shape[1] > 1000 and three.shape[1] > one.shape[1]  # a panel more, for mIoU


def test_a_folder_without_a_log_is_refused_with_a_reason(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit, match='holds no <timestamp>/vis_data/scalars.json'):
        plot_training.main([str(tmp_path / 'empty'), '--out', str(tmp_path / 'x.png')])
    run = write_run(tmp_path / 'fresh')
    with pytest.raises(SystemExit, match='no training step yet'):
        plot_training.main([run, '--out', str(tmp_path / 'x.png')])
    assert not (tmp_path / 'x.png').exists()


# ------------------------------------------------------------------------- detections

CONFIG = """
default_scope = 'mmdet'
test_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root={root!r}, ann_file='annotations/val.json',
    data_prefix=dict(img='images/val/'), metainfo=dict(classes={classes!r}), test_mode=True,
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale=(128, 96), keep_ratio=True),
              dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape'))]))
"""


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
    dataset = draw_detections.test_data(Config.fromfile(config))
    samples = []
    for i in range(len(dataset)):
        real = draw_detections.truth(dataset.get_data_info(i))
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
    draw_detections.main([str(shapes), predictions, '--out', str(out)])
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
    draw_detections.main([str(shapes), predictions, '--out', str(out), '--images', '1',
                          '--score-thr', '0.95'])
    assert {p.name for p in out.iterdir()} == {'000000.png', 'sheet.png'}
    right = picture(out / '000000.png')[-192 * 2:, -256 * 2:]
    raw = cv2.imread(str(shapes.parent / 'data' / 'images' / 'val' / '000000.jpg'))
    plain = cv2.resize(raw, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(right, plain)  # nothing is that sure


def test_predictions_come_the_surest_first_in_image_pixels():
    scores, masks = torch.tensor([0.3, 0.9, 0.5]), np.zeros((3, 4, 6), np.uint8)
    masks[1, :2] = 1
    from mmdet.structures.mask import encode_mask_results
    found = draw_detections.detections(dict(ori_shape=(4, 6), pred_instances=dict(
        bboxes=torch.arange(12.).view(3, 4), labels=torch.tensor([2, 0, 1]), scores=scores,
        masks=encode_mask_results(masks))), 0.4)
    assert found['labels'].tolist() == [0, 1]
    assert found['bboxes'].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert np.array_equal(found['masks'][0], masks[1].astype(bool))


def test_masks_in_every_form_of_coco():
    runs = dict(size=[2, 3], counts=[0, 1, 1, 1, 3])  # column by column, what is off first
    compressed = coco_mask.frPyObjects(runs, 2, 3)
    for mask in ([[0, 0, 2, 0, 2, 1, 0, 1]], runs, compressed):
        assert draw_detections.decode(mask, 2, 3).astype(int).tolist() == [[1, 1, 0], [0, 0, 0]]


def test_predictions_of_something_else_are_refused_with_a_reason(shapes, tmp_path):
    predictions = pickle.loads(open(predict(shapes, tmp_path / 'p.pkl'), 'rb').read())

    def refusal(content, size=None):
        file = tmp_path / 'q.pkl'
        file.write_bytes(pickle.dumps(content)[:size])
        with pytest.raises(SystemExit) as error:
            draw_detections.main([str(shapes), str(file), '--out', str(tmp_path / 'out')])
        return str(error.value)

    assert 'whole pickle' in refusal(predictions, size=-20)
    assert 'no list of predictions' in refusal([])
    assert 'is not in the test data' in refusal([dict(predictions[0], img_id=99)])
    assert 'is not in the test data' in refusal([dict(predictions[0], img_path='elsewhere.jpg')])
    assert 'of a detector?' in refusal([dict(img_id=0, pred_sem_seg=None)])
    predictions[0]['pred_instances'].update(labels=predictions[0]['pred_instances']['labels'] + 70)
    assert 'more than the 5 classes' in refusal(predictions)
    with pytest.raises(SystemExit, match='there is no file'):
        draw_detections.main([str(shapes), 'nowhere.pkl', '--out', str(tmp_path / 'o')])

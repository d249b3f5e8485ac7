"""Curves from the logs of trainings, by tools/plot_training.py."""
import json

import cv2
import pytest
from mmengine.visualization import LocalVisBackend

import tool
from cmt_backbones.visualization import training_curves


def lines(*records):
    return '\n'.join(json.dumps(record) for record in records) + '\n'


def train(step, loss, **others):
    return dict(lr=0.01 / step, loss=loss, loss_cls=loss / 2, iter=step, step=step, **others)


EPOCHS = [train(10, 2.0, epoch=1), train(20, 1.5, epoch=1), {'coco/bbox_mAP': 0.1, 'step': 1},
          train(30, 1.2, epoch=2), {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_s': -1.0, 'step': 2}]


def test_a_log_by_epochs():
    series = training_curves.read_scalars(lines(*EPOCHS))
    assert series == {('loss', 'iteration'): {10: 2.0, 20: 1.5, 30: 1.2},
                      ('lr', 'iteration'): {10: 0.01 / 10, 20: 0.01 / 20, 30: 0.01 / 30},
                      ('coco/bbox_mAP', 'epoch'): {1: 0.1, 2: 0.2}}
    assert training_curves.read_scalars(lines(*EPOCHS), 'no such metric').keys() == {
        ('loss', 'iteration'), ('lr', 'iteration')}


@pytest.mark.parametrize('logged_step, drawn_at', [(20, 20), (23, 23), (0, 20), (1, 20)])
def test_a_log_by_iterations_that_may_count_validations_otherwise(logged_step, drawn_at):
    log = lines(train(10, 2.0), train(20, 1.0), dict(mIoU=41.5, aAcc=80, step=logged_step))
    assert training_curves.read_scalars(log)['mIoU', 'iteration'] == {drawn_at: 41.5}


def test_what_is_no_point_of_a_curve_is_left_out():
    alone = lines({'coco/bbox_mAP': 0.7, 'step': 0})  # a validation without a training
    assert training_curves.read_scalars(alone) == {}
    log = lines(train(10, float('nan')), train(20, 1.0, base_lr=0.5)) + '{"loss": 0.9, "it'
    series = training_curves.read_scalars(log)
    assert series['loss', 'iteration'] == {20: 1.0}
    assert series['lr', 'iteration'][20] == 0.5  # not that of the first of several layers


def test_a_resumed_run_overrides_what_it_did_again(tmp_path):
    resumed = [train(20, 1.4, epoch=1), {'coco/bbox_mAP': 0.15, 'step': 1}, train(30, 1.1, epoch=2)]
    # The second to be written is the first by its timestamp.
    for timestamp, records in [('20260102_000000', resumed), ('20260101_000000', EPOCHS)]:
        backend = LocalVisBackend(tmp_path / timestamp / 'vis_data')
        for record in records:
            backend.add_scalars(record)
    series = training_curves.read_run(tmp_path)
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
    tool.run('plot_training', runs[0], '--out', tmp_path / 'one.png')
    tool.run('plot_training', *runs, '--out', tmp_path / 'new' / 'three.png')
    one, three = (cv2.imread(str(tmp_path / name)) for name in ('one.png', 'new/three.png'))
    assert one.shape[1] > 1000 and three.shape[1] > one.shape[1]  # a panel more, for mIoU


def test_a_folder_without_a_log_is_refused_with_a_reason(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit, match='holds no <timestamp>/vis_data/scalars.json'):
        tool.run('plot_training', str(tmp_path / 'empty'), '--out', tmp_path / 'x.png')
    run = write_run(tmp_path / 'fresh')
    with pytest.raises(SystemExit, match='no training step yet'):
        tool.run('plot_training', run, '--out', tmp_path / 'x.png')
    assert not (tmp_path / 'x.png').exists()

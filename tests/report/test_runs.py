"""What is read of a work_dir: whole, unfinished, moved, or none."""
import json

import pytest
import torch

from cmt_backbones.report.errors import ReportError
from cmt_backbones.report.runs import facts, read_run

LOG = """2026/01/01 10:00:00 - mmengine - INFO -
System environment:
    Python: 3.11.7 (main)
    GPU 0,1: NVIDIA H200
    PyTorch: 2.11.0+cu130
    MMEngine: 0.10.7
Runtime environment:
    seed: 7
    GPU number: 2
2026/01/01 10:00:05 - mmengine - INFO - RetinaNet on 117266 images of 80 classes: 12 epochs of 100 iterations, on cuda
2026/01/01 11:01:40 - mmengine - INFO - Saving checkpoint at 1 epochs
"""
CONFIG = """
default_scope = {scope!r}
model = dict(type='RetinaNet', backbone=dict(type='CMT', arch='small', init_cfg=dict(checkpoint='cmt_small.pth')))
train_cfg = {loop}
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='AdamW', lr=1e-4))
"""


def lines(*records):
    return '\n'.join(json.dumps(record) for record in records) + '\n'


def train(step, **others):
    return dict(lr=.01, loss=2 / step, loss_cls=1 / step, iter=step, step=step, time=.5, memory=2048 + step, **others)


EPOCH = [train(50, epoch=1), train(100, epoch=1), {'coco/bbox_mAP': .2, 'step': 1}]


@pytest.fixture
def work_dir(tmp_path):
    """A run after the first of its 12 epochs, by hand."""
    return start(tmp_path / 'run', '20260101_100000', EPOCH)


def start(folder, timestamp, records, loop="dict(type='EpochBasedTrainLoop', max_epochs=12)", scope='mmdet'):
    """What one start of a training leaves, and a checkpoint."""
    (folder / timestamp / 'vis_data').mkdir(parents=True)
    (folder / timestamp / 'vis_data/scalars.json').write_text(lines(*records))
    (folder / timestamp / 'vis_data/config.py').write_text(CONFIG.format(scope=scope, loop=loop))
    (folder / timestamp / f'{timestamp}.log').write_text(LOG)
    (folder / 'retinanet_cmt_s_1x.py').write_text('model = dict()')  # of a test into the same folder
    torch.save({}, folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text('/elsewhere/on/another/machine/epoch_1.pth')
    return folder


def test_what_was_trained(work_dir):
    told = facts(read_run(work_dir, 'run'))
    assert told == {
        'Config': 'retinanet_cmt_s_1x.py', 'Model': 'RetinaNet', 'Backbone': 'CMT small',
        'Initial weights': 'cmt_small.pth', 'Trained on': '117266 images of 80 classes: 12 epochs of 100 iterations, '
        'on cuda', 'Optimizer': 'AdamW, learning rate 0.0001, mixed precision (bfloat16)', 'Seed': '7',
        'Time': '1 h 1 min, 0.5 s an iteration (median)', 'Memory': '2.1 GiB at its peak on the first GPU',
        'Hardware': '2 x NVIDIA H200', 'Versions': 'Python 3.11.7, PyTorch 2.11.0+cu130, MMEngine 0.10.7',
        'Checkpoint': 'epoch_1.pth'}


def test_an_unfinished_run_says_where_it_stands(work_dir):
    run = read_run(work_dir, 'run')
    assert run.told == ['unfinished: 1 of 12 epochs are done and 100 iterations are logged']
    assert run.series['loss_cls', 'iteration'] == {50: 1 / 50, 100: 1 / 100}
    assert run.series['coco/bbox_mAP', 'epoch'] == {1: .2}
    (work_dir / 'last_checkpoint').write_text('epoch_12.pth')
    torch.save({}, work_dir / 'epoch_12.pth')
    assert read_run(work_dir, 'run').told == []


@pytest.mark.parametrize('last, told', [(95, []), (60, ['unfinished: 60 of 100 iterations are done'])])
def test_a_run_by_iterations_logs_its_last_ones_not_always(last, told, tmp_path):
    work_dir = start(tmp_path / 'run', '20260101_100000', [train(last)], 'dict(max_iters=100)', 'mmseg')
    assert read_run(work_dir, 'run').told == told


def test_a_run_that_was_started_twice_is_one(work_dir):
    start(work_dir, '20260102_100000', [train(100, epoch=1), train(150, epoch=2)])
    run = read_run(work_dir, 'run')
    assert [*run.series['loss', 'iteration']] == [50, 100, 150]
    assert facts(run)['Time'] == '2 h 3 min in 2 starts, 0.5 s an iteration (median)'


def test_a_test_into_the_same_folder_is_no_training(work_dir):
    folder = work_dir / '20270101_100000/vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(lines({'coco/bbox_mAP': .9, 'step': 0}))
    (folder / 'config.py').write_text('nonsense(')
    run = read_run(work_dir, 'run')
    assert run.config.train_cfg.max_epochs == 12 and ('coco/bbox_mAP', 'epoch') in run.series


def test_the_best_checkpoint_is_taken_before_the_last(work_dir):
    assert read_run(work_dir, 'run').checkpoint == work_dir / 'epoch_1.pth'
    torch.save({}, work_dir / 'best_coco_bbox_mAP_epoch_1.pth')
    assert read_run(work_dir, 'run').checkpoint.name == 'best_coco_bbox_mAP_epoch_1.pth'
    assert read_run(work_dir, 'run', work_dir / 'epoch_1.pth').checkpoint.name == 'epoch_1.pth'


def test_a_checkpoint_that_is_gone_is_told(work_dir):
    (work_dir / 'epoch_1.pth').unlink()
    run = read_run(work_dir, 'run')
    assert run.checkpoint is None and run.told[1] == (
        'the checkpoint epoch_1.pth, which the run names as its last, is gone, and there is no other: nothing could be '
        'evaluated')
    torch.save({}, work_dir / 'interrupted.pth')
    assert read_run(work_dir, 'run').checkpoint.name == 'interrupted.pth'
    with pytest.raises(ReportError, match='there is no checkpoint nowhere.pth'):
        read_run(work_dir, 'run', work_dir.with_name('nowhere.pth').relative_to(work_dir.parent))


def test_what_is_no_run_is_refused_in_one_line(tmp_path, work_dir):
    def said(folder):
        with pytest.raises(ReportError) as refused:
            read_run(folder, 'run')
        assert '\n' not in str(refused.value)
        return str(refused.value)

    assert said(tmp_path / 'nowhere') == f'there is no folder {tmp_path / "nowhere"}'
    (tmp_path / 'empty').mkdir()
    assert 'empty is not the work_dir of a training: it has neither a config' in said(tmp_path / 'empty')
    (tmp_path / 'empty/config.py').write_text(CONFIG.format(scope='mmdet', loop={}))
    assert 'has neither a logged training step nor a checkpoint yet' in said(tmp_path / 'empty')
    (tmp_path / 'empty/config.py').write_text('model = dict(')
    assert 'cannot read the config' in said(tmp_path / 'empty')
    (work_dir / '20260101_100000/vis_data/config.py').write_text("default_scope = 'mmpretrain'")
    assert 'is not the config of a detector or a segmentor' in said(work_dir)

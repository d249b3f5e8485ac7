"""Runs that are interrupted and resumed, and what they leave on the disk."""
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import TRANSFORMS

from cmt_backbones.openmmlab import load_from_disk
from cmt_backbones.training import interruption, resuming
from small_runs import At, assert_same, detector, draw, segmentor, sigterm, train

ROOT = Path(__file__).parents[2]
KINDS = dict(detector=(detector, 'epoch_2.pth'), segmentor=(segmentor, 'iter_7.pth'))


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return draw(tmp_path_factory.mktemp('scenes') / 'shapes')


@pytest.fixture(scope='module')
def whole(scenes, tmp_path_factory):
    """The last checkpoints of runs that were never stopped, with two data workers."""
    kept = {}

    def last(kind):
        if kind not in kept:
            make, name = KINDS[kind]
            work_dir = tmp_path_factory.mktemp('whole')
            train(make(scenes, work_dir, workers=2))
            kept[kind] = load_from_disk(str(work_dir / name))
        return kept[kind]

    return last


def assert_resumed_equals_whole(cfg, whole, name, *hooks):
    cfg.resume, cfg.randomness = True, dict(seed=None)  # the seed comes from the checkpoint
    train(cfg, *hooks)
    last = load_from_disk(str(Path(cfg.work_dir) / name))
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'} <= set(last)
    assert 'loss_scaler' in last['optimizer'] and last['optimizer']['loss_scaler']['scale'] > 65536
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_same(last[key], whole[key], key)
    assert not (Path(cfg.work_dir) / 'interrupted.pth').exists()


@pytest.mark.parametrize('kind, workers, iteration', [
    # A batch is the same with any number of workers.
    ('detector', 2, 2), ('detector', 0, 4), ('segmentor', 2, 4)])
def test_sigterm_and_resume(kind, workers, iteration, scenes, whole, tmp_path):
    make, name = KINDS[kind]
    with pytest.raises(SystemExit) as stopped:
        train(make(scenes, tmp_path, workers), At('before_train_iter', iteration, sigterm))
    assert stopped.value.code == 143
    saved = load_from_disk(str(tmp_path / 'interrupted.pth'))
    assert saved['meta']['iter'] == iteration + 1  # the iteration under way was finished
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'interrupted.pth')
    assert_resumed_equals_whole(make(scenes, tmp_path, workers), whole(kind), name)


def test_sigterm_in_a_validation(scenes, whole, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        train(detector(scenes, tmp_path, workers=0), At('before_val_iter', 5, sigterm))
    assert stopped.value.code == 143
    assert load_from_disk(str(tmp_path / 'interrupted.pth'))['meta']['validation_due']
    validated = []
    assert_resumed_equals_whole(detector(scenes, tmp_path, workers=0), whole('detector'), 'epoch_2.pth',
                                At('before_val_epoch', 5, lambda runner: validated.append(runner.epoch)))
    assert validated == [1]


def test_accumulated_gradients_are_not_lost(scenes, tmp_path):
    cfg = detector(scenes, tmp_path, 0)
    cfg.optim_wrapper.accumulative_counts = 3
    with pytest.raises(SystemExit):
        train(cfg, At('before_train_iter', 3, sigterm))
    assert load_from_disk(str(tmp_path / 'interrupted.pth'))['meta']['iter'] == 6


def test_used_batches_are_passed_over_without_loading_them(scenes, tmp_path):
    with pytest.raises(SystemExit):
        train(segmentor(scenes, tmp_path, 0), At('before_train_iter', 5, sigterm))
    cfg = segmentor(scenes, tmp_path, 0)
    cfg.resume = True
    cfg.train_dataloader.dataset.pipeline.insert(0, dict(type='CountImages'))
    CountImages.loaded = 0
    train(cfg)
    assert CountImages.loaded == 2  # one batch of two was left


@TRANSFORMS.register_module()
class CountImages:
    loaded = 0

    def __call__(self, results):
        CountImages.loaded += 1
        return results


def test_loops_that_drop_used_batches_and_loops_that_skip_them():
    dropping = resuming.UnusedBatches(['third', 'fourth'], 2)
    assert [next(dropping) for _ in range(4)] == [None, None, 'third', 'fourth']
    skipping = resuming.UnusedBatches(['third', 'fourth'], 0)
    skipping.skip_iter(2)  # as onedl-mmengine's loop does
    assert next(skipping) == 'third'


def test_another_batch_size_begins_the_epoch_anew(scenes, tmp_path):
    with pytest.raises(SystemExit):
        train(detector(scenes, tmp_path, 0), At('before_train_iter', 7, sigterm))
    cfg = detector(scenes, tmp_path, 0)
    cfg.resume, cfg.train_dataloader.batch_size = True, 3
    seen = []
    train(cfg, At('before_train_epoch', 8, lambda runner: seen.append(runner.epoch)),
          At('after_train_epoch', 11, lambda runner: seen.append(runner.epoch)))
    assert seen == [1, 1]  # 9 images in batches of 3


def test_kills_at_random_moments(tmp_path):
    command = [sys.executable, 'benchmarks/kill_and_resume.py', '--kills', '2', '--epochs', '3',
               '--folder', tmp_path]
    output = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert output.returncode == 0, output.stdout + output.stderr
    assert output.stdout.endswith('largest difference from the whole run: 0\n')


# ---------------------------------------------------------------------------- on the disk


def checkpoint(path, iteration, day=1):
    meta = dict(epoch=0, iter=iteration, time=f'202601{day:02}_120000')
    torch.save(dict(state_dict={'w': torch.rand(1000)}, meta=meta, message_hub={}, optimizer={}), path)


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert interruption.newest_checkpoint(tmp_path) is None
    for name, iteration in [('epoch_2.pth', 20), ('epoch_10.pth', 100), ('epoch_9.pth', 90)]:
        checkpoint(tmp_path / name, iteration)
    weights = dict(state_dict={}, meta=dict(iter=200, time='20270101_120000'))
    torch.save(weights, tmp_path / 'best_mAP_epoch_20.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert interruption.newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_10.pth')
    checkpoint(tmp_path / 'interrupted.pth', 100)  # in the validation behind it
    assert interruption.newest_checkpoint(tmp_path) == str(tmp_path / 'interrupted.pth')
    checkpoint(tmp_path / 'epoch_1.pth', 10, day=2)  # of a second run in this folder
    assert interruption.newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')


@pytest.mark.parametrize('tear', [
    lambda content: b'', lambda content: content[:100], lambda content: content[:-50],
    lambda content: content[:len(content) // 2] + bytes(len(content) - len(content) // 2),
    lambda content: content[:2000] + bytes([content[2000] ^ 255]) + content[2001:]],
    ids=['empty', 'beginning', 'end missing', 'zeros', 'a byte'])
def test_a_torn_checkpoint_is_named_and_passed_over(tear, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(interruption, 'print_log', lambda message, *args: told.append(message))
    checkpoint(tmp_path / 'epoch_1.pth', 10)
    checkpoint(tmp_path / 'epoch_2.pth', 20)
    torn = tmp_path / 'epoch_2.pth'
    torn.write_bytes(tear(torn.read_bytes()))
    (tmp_path / 'last_checkpoint').write_text(str(torn))
    assert interruption.newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')
    assert len(told) == 1 and str(torn) in told[0]


def test_a_note_of_the_last_checkpoint_may_be_torn(tmp_path):
    checkpoint(tmp_path / 'epoch_1.pth', 10)
    for note in ('', str(tmp_path / 'epo'), str(tmp_path)):
        (tmp_path / 'last_checkpoint').write_text(note)
        assert interruption.newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')


# ---------------------------------------------------------------------------- randomness


def draws():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_random_streams_are_functions_of_where_a_run_is():
    resuming.seed_everything(5, 0, 7)
    first = draws()
    draws()
    resuming.seed_everything(5, 0, 7)
    assert draws() == first
    streams = []
    for stream in [(5, 0, 7), (5, 1, 7), (5, 0, 8), (6, 0, 7), (5, 0, 7, 0)]:
        resuming.seed_everything(*stream)
        streams.append(draws())
    assert all(a != b for i, a in enumerate(streams) for b in streams[:i])


# ---------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_and_resume_tells_the_right_batches(scenes, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        train(detector(scenes, tmp_path, 2),
              At('before_train_iter', 2, lambda runner: os.kill(os.getpid(), signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert stopped.value.code == 130
    assert load_from_disk(str(tmp_path / 'interrupted.pth'))['meta']['iter'] == 3
    cfg = detector(scenes, tmp_path, 0)
    cfg.resume, counted = True, CountedBatches()
    train(cfg, counted)
    assert counted.batches == [3, 4, 0, 1, 2, 3, 4]  # of two epochs of five


def test_after_an_error_signals_are_their_owners_again(scenes, tmp_path):
    def fail(runner):
        raise OSError('the disk is full')

    with pytest.raises(OSError, match='the disk is full'):
        train(detector(scenes, tmp_path, 0), At('before_train_iter', 2, fail))
    with pytest.raises(KeyboardInterrupt):  # as in a notebook
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class CountedBatches(Hook):

    def __init__(self):
        self.batches = []

    def after_train_iter(self, runner, batch_idx, **kwargs):
        self.batches.append(batch_idx)


@pytest.mark.parametrize('whose', ['run', 'worker'])
def test_a_second_ctrl_c_ends_at_once(whose):
    process = os.fork()
    if process == 0:
        if whose == 'run':
            hook = interruption.SaveOnSigterm()
            hook.logger, hook.running = logging.getLogger('test'), sys._getframe().f_code
            signal.signal(signal.SIGINT, hook.request)
        else:
            interruption.heed_own_process(None, 0)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(.01)  # a Python handler runs between two instructions
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGINT

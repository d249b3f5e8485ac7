"""Losses that are not finite, in one process; in two: test_processes.py."""
import functools
import math

import pytest
import torch

import small_runs
from cmt_backbones.training.finite_loss import FiniteLossHook


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return small_runs.draw(tmp_path_factory.mktemp('scenes') / 'shapes', images=6, val=1)


@pytest.mark.parametrize('make, terms', [(small_runs.detector, 'loss_cls nan, loss_bbox '),
                                         (small_runs.segmentor, 'decode.loss_ce nan, decode.acc_seg ')])
def test_the_error_tells_iteration_losses_and_images(make, terms, scenes, tmp_path):
    cfg = small_runs.spoiled(make, scenes, tmp_path, ['000002.jpg'], math.inf)
    seen = []
    with pytest.raises(FloatingPointError, match=rf'the loss of iteration \d is not finite: process 0 has {terms}.* '
                       r'for \S+/train/000002.jpg. The weights are as they were before it') as error:
        small_runs.train(cfg, small_runs.At('before_train_iter', 0, seen.append))
    runner, = seen
    assert f'iteration {runner.iter + 1} ' in str(error.value)
    assert all(p.isfinite().all() for p in runner.model.parameters())


def test_batches_are_left_out_if_asked(scenes, tmp_path):
    bad = '000002.jpg', '000005.jpg'
    spoiled = functools.partial(small_runs.spoiled, small_runs.detector, scenes, names=bad, value=math.inf)
    runner = small_runs.train(spoiled(tmp_path / 'a', max_skipped=4))
    assert runner.iter == 12  # 2 epochs of 6
    assert all(p.isfinite().all() for p in runner.model.parameters())
    assert max(int(state['step']) for state in runner.optim_wrapper.optimizer.state.values()) == 8
    with pytest.raises(FloatingPointError, match=r'max_skipped=4\) in custom_hooks'):
        small_runs.train(spoiled(tmp_path / 'b', max_skipped=3))


def test_losses_in_lists_are_told(tmp_path):
    hook = FiniteLossHook()
    terms = dict(loss_cls=[torch.tensor(1.), torch.tensor(float('inf'))], acc=torch.tensor([1., 3.]))
    told = hook.describe(terms)
    assert told == 'process 0 has loss_cls inf, acc 2 for a batch without img_path'

"""Checkpoints, randomness and processes on the OpenMMLab versions at hand."""
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

import cmt_backbones  # noqa: F401  (registers the loaders)
from cmt_backbones import openmmlab


def run_checkpoint():
    """What mmengine's Runner saves beside weights."""
    buffer = HistoryBuffer()
    for value in (3., 1., 2.):
        buffer.update(value)
    return {'state_dict': {'backbone.weight': torch.arange(3.)},
            'meta': {'epoch': 2, 'iter': 7, 'seed': np.int64(5), 'dataset_meta': {'classes': ('a', 'b')}},
            'message_hub': {'log_scalars': {'train/loss': buffer}, 'runtime_info': {'lr': np.float64(.1)}}}


def test_our_own_checkpoints_come_back_whole(tmp_path):
    torch.save(run_checkpoint(), tmp_path / 'epoch_2.pth')
    with pytest.raises(pickle.UnpicklingError):  # the fault that this is for
        torch.load(tmp_path / 'epoch_2.pth', weights_only=True)
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'epoch_2.pth'), map_location='cpu')
    assert torch.equal(content['state_dict']['backbone.weight'], torch.arange(3.))
    assert content['meta'] == run_checkpoint()['meta']
    buffer = content['message_hub']['log_scalars']['train/loss']
    assert buffer.statistics('mean') == 2 and buffer.statistics('max') == 3 and buffer.current() == 2
    assert content['message_hub']['runtime_info']['lr'] == .1


class Code:

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Attribute:
    """Pickles as `getattr(HistoryBuffer, name)`."""

    def __init__(self, owner, name):
        self.call = getattr, (owner, name)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('content', [
    Code(eval, "open('FIRED', 'w')"), Code(os.mkdir, 'FIRED'), Attribute(HistoryBuffer, '__init__'),
    Attribute(np.dtype('f4'), 'newbyteorder'), Code(getattr, Attribute(HistoryBuffer, 'min'), '__globals__')],
    ids=['eval', 'system', 'private attribute', 'foreign attribute', 'globals'])
def test_a_checkpoint_never_runs_code(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**run_checkpoint(), 'extra': content}, 'epoch_2.pth')
    try:
        loaded = CheckpointLoader.load_checkpoint('epoch_2.pth', map_location='cpu')
        assert type(loaded['extra']).__name__ == 'Inert'
    except ValueError as error:
        assert 'holds code' in str(error)
    assert not (tmp_path / 'FIRED').exists()


def test_a_missing_checkpoint():
    with pytest.raises(FileNotFoundError, match='nowhere.pth cannot be found'):
        CheckpointLoader.load_checkpoint('nowhere.pth')


def test_only_torchrun_starts_cpu_processes():
    with pytest.raises(ValueError,
                       match='only the pytorch launcher works, not slurm: use tools/dist_train.sh'):
        openmmlab.prepare_cpu_processes(Config(dict(launcher='slurm')))


def test_drawing_needs_a_visualization_hook():
    with pytest.raises(ValueError, match='--show-dir needs a visualization hook'):
        openmmlab.show_predictions(Config(dict(default_hooks=dict())), 'out')

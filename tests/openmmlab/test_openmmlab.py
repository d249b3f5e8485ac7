"""Checkpoints of mmengine on the versions at hand: by its own reader, and by ours, which runs nothing."""
import argparse
import collections
import datetime
import os
import pathlib

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from cmt_backbones import openmmlab
from cmt_backbones.openmmlab import checkpoints


def run_checkpoint():
    """What mmengine's Runner saves beside weights."""
    buffer = HistoryBuffer()
    for value in (3., 1., 2.):
        buffer.update(value)
    return {'state_dict': {'backbone.weight': torch.arange(3.)},
            'meta': {'epoch': 2, 'iter': 7, 'seed': np.int64(5), 'dataset_meta': {'classes': ('a', 'b')}},
            'message_hub': {'log_scalars': {'train/loss': buffer}, 'runtime_info': {'lr': np.float64(.1)}}}


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before torch 1.6'])
@pytest.mark.parametrize('read', [openmmlab.load_from_disk, CheckpointLoader.load_checkpoint],
                         ids=['ours', "mmengine's"])
def test_our_own_checkpoints_come_back_whole(read, zipped, tmp_path):
    torch.save(run_checkpoint(), tmp_path / 'epoch_2.pth', _use_new_zipfile_serialization=zipped)
    content = read(str(tmp_path / 'epoch_2.pth'), map_location='cpu')
    assert torch.equal(content['state_dict']['backbone.weight'], torch.arange(3.))
    assert content['meta'] == run_checkpoint()['meta']
    buffer = content['message_hub']['log_scalars']['train/loss']
    assert buffer.statistics('mean') == 2 and buffer.statistics('max') == 3 and buffer.current() == 2
    assert content['message_hub']['runtime_info']['lr'] == .1


def test_what_a_project_keeps_beside_them(tmp_path):
    kept = dict(args=argparse.Namespace(lr=.1, sizes=[1, 2]), path=pathlib.Path('a/b'),
                last=collections.deque([1, 2], 3), counts=collections.defaultdict(int, a=1),
                objects=np.array([{'a': 1}, None], dtype=object),
                table=np.zeros(2, dtype=[('x', 'f4'), ('y', 'i8')]), many={1, 2}, few=frozenset([3]), part=slice(1, 5),
                blob=b'\x00\xff', number=1j, device=torch.device('cpu'), kind=torch.bfloat16, size=torch.Size([1, 2]))
    torch.save(dict(run_checkpoint(), kept=kept), tmp_path / 'epoch_2.pth')
    found = openmmlab.load_from_disk(str(tmp_path / 'epoch_2.pth'))['kept']
    assert found.keys() == kept.keys()
    for key, value in kept.items():
        assert type(found[key]) is type(value), key
        equal = (np.array_equal if isinstance(value, np.ndarray) else lambda a, b: a == b)
        assert equal(found[key], value), key


def test_what_cannot_be_restored_is_named_and_left_out(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(checkpoints, 'print_log', lambda message, *args: told.append(message))
    content = run_checkpoint()
    content['message_hub']['runtime_info']['started'] = datetime.datetime(2026, 1, 1)
    content['stages'] = [(1, Code(os.getpid)), argparse.Namespace(model=torch.nn.Linear(1, 1), lr=1)]
    torch.save(content, tmp_path / 'epoch_2.pth')
    found = openmmlab.load_from_disk(str(tmp_path / 'epoch_2.pth'))
    assert 'started' not in found['message_hub']['runtime_info']
    assert found['stages'] == [(1, None), argparse.Namespace(lr=1)]
    torch.save(found, tmp_path / 'again.pth')
    message, = told
    assert message.startswith(f'{tmp_path}/epoch_2.pth: left out, since no code')
    assert 'message_hub.runtime_info.started (a datetime.datetime)' in message
    assert 'stages[0][1] (a posix.getpid)' in message
    assert 'stages[1].model (a torch.nn.modules.linear.Linear)' in message


class Code:

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before torch 1.6'])
@pytest.mark.parametrize('content', [
    Code(eval, "open('FIRED', 'w')"), Code(os.mkdir, 'FIRED'), Code(getattr, HistoryBuffer, '__init__'),
    Code(getattr, np.dtype('f4'), 'newbyteorder'), Code(getattr, Code(getattr, HistoryBuffer, 'min'), '__globals__')],
    ids=['eval', 'system', 'private attribute', 'foreign attribute', 'globals'])
def test_a_checkpoint_never_runs_code(content, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**run_checkpoint(), 'extra': content}, 'epoch_2.pth', _use_new_zipfile_serialization=zipped)
    try:
        assert 'extra' not in openmmlab.load_from_disk('epoch_2.pth', map_location='cpu')
    except ValueError as error:
        assert 'holds code' in str(error)
    assert not (tmp_path / 'FIRED').exists()


def test_a_missing_checkpoint():
    with pytest.raises(FileNotFoundError, match='nowhere.pth cannot be found'):
        openmmlab.load_from_disk('nowhere.pth')


def test_configs_of_a_package_in_another_distribution(tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'a-distribution-that-is-not-there')
    (tmp_path / 'config.py').write_text("_base_ = 'mmseg::_base_/models/fcn_unet_s5-d16.py'")
    assert openmmlab.config_from_file(tmp_path / 'config.py').model.type == 'EncoderDecoder'
    assert MODULE2PACKAGE['mmseg'] == 'a-distribution-that-is-not-there'


def test_only_torchrun_starts_cpu_processes():
    with pytest.raises(ValueError,
                       match='only the pytorch launcher works, not slurm: use tools/dist_train.sh'):
        openmmlab.prepare_cpu_processes(Config(dict(launcher='slurm')))


def test_drawing_needs_a_visualization_hook():
    with pytest.raises(ValueError, match='--show-dir needs a visualization hook'):
        openmmlab.show_predictions(Config(dict(default_hooks=dict())), 'out')

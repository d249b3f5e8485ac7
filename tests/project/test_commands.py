"""The commands as people call them: trained, killed, resumed, tested, on drawn scenes."""
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.openmmlab import load_from_disk

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/mmdet/retinanet_cmt_ti_1x.py'
EPOCHS = 3


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    drawn_scenes.make_shapes(folder, 9, 3, 0, [(96, 64), (64, 96)])
    return folder


def options(shapes):
    """The stock config on small drawn scenes, by --cfg-options alone."""
    out = ['--cfg-options', 'model.backbone.init_cfg=None', 'model.backbone.norm_eval=False',
           'model.bbox_head.num_classes=5', 'randomness.seed=3', 'default_hooks.logger.interval=1',
           f'train_cfg.max_epochs={EPOCHS}', 'param_scheduler.0.end=2',
           'train_dataloader.dataset.pipeline.2.scale=(96,64)']
    for split in ('train', 'val', 'test'):
        name = 'train' if split == 'train' else 'val'
        out += [f'{split}_dataloader.dataset.data_root={shapes}/',
                f'{split}_dataloader.dataset.ann_file=annotations/{name}.json',
                f'{split}_dataloader.dataset.data_prefix.img=images/{name}/',
                f'{split}_dataloader.dataset.metainfo.classes=(ellipse,rectangle,triangle,star,cross)']
        if split != 'train':
            out += [f'{split}_dataloader.dataset.pipeline.1.scale=(96,64)',
                    f'{split}_evaluator.ann_file={shapes}/annotations/val.json']
    return out


def start(command, **env):
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True,
                            env=dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', **env))


def finish(process, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output[-3000:]
    return output


def train(shapes, work_dir, *flags):
    return start(['tools/dist_train.sh', CONFIG, '2', '--work-dir', str(work_dir), *flags, *options(shapes)])


@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    """A run of two processes that was never stopped."""
    work_dir = tmp_path_factory.mktemp('work') / 'whole'
    finish(train(shapes, work_dir))
    return work_dir


def weights(work_dir):
    return load_from_disk(str(work_dir / f'epoch_{EPOCHS}.pth'))['state_dict']


def test_a_killed_and_resumed_run_ends_with_the_same_weights(shapes, trained, tmp_path):
    process = train(shapes, tmp_path / 'killed')
    deadline = time.time() + 200
    while not (tmp_path / 'killed' / 'last_checkpoint').exists():
        assert process.poll() is None and time.time() < deadline, process.communicate()[0][-3000:]
        time.sleep(.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # torchrun's workers are sessions of their own
    subprocess.run(['pkill', '-KILL', '-f', str(tmp_path / 'killed')])
    assert not (tmp_path / 'killed' / f'epoch_{EPOCHS}.pth').exists()

    output = finish(train(shapes, tmp_path / 'killed', '--resume'))
    assert 'resumed epoch: ' in output
    whole, resumed = weights(trained), weights(tmp_path / 'killed')
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.allclose(value.float(), resumed[key].float(), rtol=0, atol=1e-6), key


def test_training_was_real(trained):
    scalars = [json.loads(line) for f in trained.glob('*/vis_data/scalars.json') for line in f.open()]
    losses = [s['loss'] for s in scalars if 'loss' in s]
    assert len(losses) == EPOCHS * 3  # 9 images, 2 processes of 2: each image is seen, some twice
    assert losses[-1] < losses[0]
    first, last = (load_from_disk(str(trained / f'epoch_{e}.pth'))['state_dict'] for e in (1, EPOCHS))
    still = [k for k in first if first[k].is_floating_point() and torch.equal(first[k], last[k])]
    assert not still  # every weight and running average moved


def test_testing_a_checkpoint(shapes, trained, tmp_path):
    command = [sys.executable, 'tools/test.py', CONFIG, str(trained / f'epoch_{EPOCHS}.pth'), '--work-dir',
               str(tmp_path / 'test'), '--out', str(tmp_path / 'predictions.pkl'), '--show-dir',
               str(tmp_path / 'shown'), *options(shapes), 'model.test_cfg.score_thr=0.0']
    output = finish(start(command))
    assert 'coco/bbox_mAP: ' in output
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert len(predictions) == 3 and all(len(p['pred_instances']['scores']) for p in predictions)
    assert len(list((tmp_path / 'shown').glob('*.jpg'))) == 3


def test_testing_with_two_processes_and_flips(shapes, trained, tmp_path):
    out = tmp_path / 'predictions.pkl'
    checkpoint = str(trained / f'epoch_{EPOCHS}.pth')
    output = finish(start(['tools/dist_test.sh', CONFIG, checkpoint, '2', '--work-dir',
                           str(tmp_path / 'test'), '--tta', '--out', str(out), *options(shapes)]))
    assert 'testing plain and flipped' in output
    # the set does not divide by the processes: no image counts twice
    assert len(pickle.loads(out.read_bytes())) == 3


@pytest.mark.parametrize('command, message', [
    (['tools/dist_train.sh', CONFIG], 'usage: dist_train.sh CONFIG PROCESSES'),
    (['tools/dist_test.sh', CONFIG, '2'], 'usage: '),
    (['tools/slurm_train.sh', 'partition'], 'usage: slurm_train.sh PARTITION JOB_NAME CONFIG'),
    ([sys.executable, 'tools/test.py', CONFIG, 'x.pth', '--out', 'folder'], 'a .pkl file, not folder'),
    ([sys.executable, 'tools/test.py', CONFIG, 'x.pth', '--launcher', 'slurm'],
     'only the pytorch launcher works'),
])
def test_wrong_calls(command, message):
    process = start(command)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and message in output


@pytest.mark.parametrize('command, script, rest', [
    (['tools/slurm_train.sh', 'gpu', 'job', CONFIG, '--amp'], 'train.py', [CONFIG, '--amp']),
    (['tools/slurm_test.sh', 'gpu', 'job', CONFIG, 'x.pth', '--tta'], 'test.py', [CONFIG, 'x.pth', '--tta'])])
def test_what_slurm_is_asked_for(command, script, rest, tmp_path):
    (tmp_path / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    asked = finish(start(command, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='16', GPUS_PER_NODE='4',
                         SRUN_ARGS='--time 1:00:00')).split('\n')
    pairs = dict(zip(asked, asked[1:]))
    assert pairs['--partition'] == 'gpu' and pairs['--job-name'] == 'job' and pairs['--time'] == '1:00:00'
    assert pairs['--ntasks'] == '16' and pairs['--ntasks-per-node'] == '4' and pairs['--gres'] == 'gpu:4'
    called = asked[asked.index('-u') + 1:-1]
    assert Path(called[0]).resolve() == ROOT / 'tools' / script
    assert called[1:] == [*rest, '--launcher', 'slurm']

"""Several processes over gloo: the numbers of one, and an end for all when one fails."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from mmdet.registry import DATASETS, METRICS, MODELS as DETECTORS
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.registry import MODELS as SEGMENTORS

import processes
import small_runs
from cmt_backbones.openmmlab import (
    BriefRunner,
    CPUDistributedDataParallel,
    config_from_file,
    ended_in_order,
    load_from_disk,
    prepare_cpu_processes,
)
from cmt_backbones.openmmlab.processes import give_gradients_the_strides_of_parameters

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return small_runs.draw(tmp_path_factory.mktemp('scenes') / 'shapes', images=6, val=5)


def test_gradients_get_the_strides_of_their_parameters():
    """Of which DDP would warn once a run; depthwise weights have others from channels-last data."""
    conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
    x = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    before, = torch.autograd.grad(conv(x).sum(), conv.weight)
    assert before.stride() != conv.weight.stride()
    give_gradients_the_strides_of_parameters(conv)
    conv(x).sum().backward()
    assert conv.weight.grad.stride() == conv.weight.stride() and torch.equal(conv.weight.grad, before)


def test_a_run_of_several_processes_has_them(tmp_path, monkeypatch):
    """Of the runner, and so on GPUs too, whose wrapper is mmengine's own."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/group', rank=0, world_size=1)
    try:
        runner = BriefRunner.__new__(BriefRunner)
        runner._distributed, runner.cfg = True, Config()
        conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        model = runner.wrap_model(dict(type='cmt_backbones.openmmlab.CPUDistributedDataParallel'), conv)
        x = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # DDP's "Grad strides do not match bucket view strides"
            model(x).sum().backward()
        assert conv.weight.grad.stride() == conv.weight.stride()
    finally:
        torch.distributed.destroy_process_group()


# ---------------------------------------------------------------------------- numbers


def build(name):
    """A small detector or segmentor without anything random. BatchNorms have fixed statistics.

    SyncBN, the other way to the same numbers, is for GPUs alone. The detector is FCOS: it divides its
    losses by numbers of objects over all processes, RetinaNet by those of each process.
    """
    torch.manual_seed(0)
    norm = dict(type='GN', num_groups=4)
    if name == 'detector':
        model = config_from_file(ROOT / 'configs/mmdet/retinanet_cmt_ti_shapes.py').model
        head = dict(type='FCOSHead', num_classes=5, in_channels=16, feat_channels=16, stacked_convs=1,
                    strides=[8, 16, 32], regress_ranges=((-1, 32), (32, 64), (64, 1e8)), norm_cfg=norm)
        model.update(type='FCOS', train_cfg=None)
        model.bbox_head = head
        model.neck.update(in_channels=[16, 24, 32], out_channels=16, num_outs=3, norm_cfg=norm)
        registry = DETECTORS
    else:
        model = config_from_file(ROOT / 'configs/mmseg/upernet_cmt_ti_shapes.py').model
        model.data_preprocessor.size = (64, 96)
        model.decode_head.update(in_channels=[8, 16, 24, 32], channels=16, pool_scales=(1, 2), norm_cfg=norm,
                                 dropout_ratio=0)
        model.auxiliary_head.update(in_channels=24, channels=16, norm_cfg=norm, dropout_ratio=0)
        registry = SEGMENTORS
    model.backbone.update(arch=small_runs.ARCH, drop_path_rate=0., norm_eval=True)
    with DefaultScope.overwrite_default_scope('mmdet' if name == 'detector' else 'mmseg'):
        return registry.build(model)


def samples(name, scenes):
    """Four images of one size, with their annotations."""
    cfg = getattr(small_runs, name)(scenes, 'unused')
    cfg = cfg.train_dataloader.dataset
    cfg.pipeline = [step for step in cfg.pipeline if not step['type'].startswith('Random')]
    resize, = [step for step in cfg.pipeline if step['type'] == 'Resize']
    resize.update(scale=(96, 64), keep_ratio=False)
    with DefaultScope.overwrite_default_scope('mmdet' if name == 'detector' else 'mmseg'):
        dataset = DATASETS.build(cfg)
    return [dataset[i] for i in range(4)]


def gradients(model, batch):
    step = model.module if isinstance(model, CPUDistributedDataParallel) else model
    data = step.data_preprocessor(pseudo_collate(batch), training=True)
    loss, _ = step.parse_losses(model.train()(**data, mode='loss'))  # train() is what fixes the BatchNorms
    loss.backward()
    return {key: p.grad.clone() for key, p in step.named_parameters() if p.requires_grad}


def evaluate(scenes, folder):
    """mmdet's COCO metric on this process's share of the images, for boxes a bit off the true ones."""
    cfg = small_runs.detector(scenes, folder)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        metric = METRICS.build(dict(cfg.val_evaluator, outfile_prefix=f'{folder}/results'))
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dataset.metainfo
    for index in DefaultSampler(dataset, shuffle=False):
        sample = dataset[index]['data_samples']
        boxes = sample.gt_instances.bboxes.tensor  # of the image as it is in its file
        off = 1 + 0.1 * torch.rand(boxes.shape, generator=torch.Generator().manual_seed(index))
        scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(index))
        found = dict(bboxes=boxes * off, labels=sample.gt_instances.labels, scores=scores)
        evaluator.process([dict(sample.metainfo, pred_instances=found)])
    return evaluator.evaluate(len(dataset))


def same_everywhere(tensor):
    both = [torch.empty_like(tensor) for _ in range(2)]
    torch.distributed.all_gather(both, tensor.detach())
    return torch.equal(*both)


def check_together(rank, scenes, folder, expected):
    """One of two processes; what it has to find was computed by one."""
    for name in ('detector', 'segmentor'):
        model = CPUDistributedDataParallel(build(name))  # which refuses parameters without gradients
        found = gradients(model, samples(name, scenes)[2 * rank:2 * rank + 2])
        assert found.keys() == expected[name].keys()
        for key, value in found.items():
            wanted = expected[name][key]
            assert (value - wanted).norm() <= 1e-4 * wanted.norm() + 1e-6, (name, key)

    metrics = evaluate(scenes, folder)
    if rank == 0:
        assert metrics == expected['metrics']

    os.environ['LOCAL_RANK'] = str(rank)  # as torchrun sets it
    for skipped, raises in ((0, True), (1, False)):
        cfg = small_runs.spoiled(small_runs.detector, scenes, f'{folder}/spoiled{skipped}', ['000004.jpg'], math.nan,
                                 max_skipped=skipped)
        cfg.train_cfg.max_epochs = 1
        cfg.launcher, cfg.experiment_name = 'pytorch', f'spoiled{skipped}'
        prepare_cpu_processes(cfg)
        runner = Runner.from_cfg(cfg)
        if raises:
            with pytest.raises(FloatingPointError, match=r'iteration \d is not finite: process [01] has '
                               r'loss_cls nan, loss_bbox .* for \S+/000004.jpg. The weights'):
                runner.train()
        else:
            runner.train()
            assert runner.iter == 3
        for key, p in runner.model.module.named_parameters():
            assert p.isfinite().all() and same_everywhere(p), key


def test_two_processes_compute_what_one_does(scenes, free_port, tmp_path):
    expected = {name: gradients(build(name), samples(name, scenes)) for name in ('detector', 'segmentor')}
    (tmp_path / 'one').mkdir()
    (tmp_path / 'two').mkdir()
    expected['metrics'] = evaluate(scenes, tmp_path / 'one')
    assert 0 < expected['metrics']['coco/bbox_mAP'] < 1 and len(set(expected['metrics'].values())) > 3
    processes.in_two(check_together, free_port, scenes, tmp_path / 'two', expected)
    one, two = (json.loads((tmp_path / name / 'results.bbox.json').read_text()) for name in ('one', 'two'))
    order = lambda found: (found['image_id'], found['score'])  # noqa: E731
    assert sorted(one, key=order) == sorted(two, key=order)  # each image once
    assert len({found['image_id'] for found in two}) == 5


def end(rank, folder):
    """A group that ends after its work, and one that an error of the first process breaks off."""
    for kind in ('finished', 'error'):
        torch.distributed.init_process_group('gloo', f'file://{folder}/{kind}', rank=rank, world_size=2)
        if kind == 'finished':
            with ended_in_order():
                torch.distributed.broadcast(torch.ones(100), 0)
        else:
            with pytest.raises(RuntimeError, match='of the first' if rank == 0 else ''), ended_in_order(patience=5):
                if rank == 0:
                    raise RuntimeError('of the first')
                torch.distributed.barrier()  # for which the first does not come
        assert not torch.distributed.is_initialized()
    with ended_in_order():
        pass  # without a group


def test_groups_end_however_their_work_does(tmp_path):
    torch.multiprocessing.spawn(end, (tmp_path, ), nprocs=2)


# ---------------------------------------------------------------------------- commands


def config_file(scenes, folder, epochs):
    """The small detector as a file, with a checkpoint after each epoch."""
    cfg = small_runs.detector(scenes, folder / 'work', workers=1)
    cfg.optim_wrapper.type, cfg.log_level = 'OptimWrapper', 'INFO'
    cfg.merge_from_dict(dict(train_cfg=dict(max_epochs=epochs, val_interval=epochs),
                             default_hooks=dict(logger=dict(interval=1))))
    cfg.dump(folder / 'small.py')
    return folder / 'small.py'


def start(command, log, **env):
    env = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1', **env)
    with open(log, 'w') as out:
        return subprocess.Popen([str(c) for c in command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                                start_new_session=True, env=env)


def wait_for(text, process, log, limit=200):
    end = time.time() + limit
    while text not in log.read_text():
        assert process.poll() is None and time.time() < end, log.read_text()[-3000:]
        time.sleep(.1)


def workers(process):
    """The processes that a launcher has started for training."""
    out = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in out.stdout.split()]


def test_sigterm_to_one_process_and_to_the_launcher(scenes, tmp_path):
    config, log = config_file(scenes, tmp_path, epochs=200), tmp_path / 'log'
    process = start(['tools/dist_train.sh', config, 2], log)
    wait_for('Epoch(train)   [2]', process, log)
    os.kill(workers(process)[1], signal.SIGTERM)
    assert process.wait(120) == 143, log.read_text()[-3000:]
    assert 'SIGTERM: saved interrupted.pth' in log.read_text() and 'Traceback' not in log.read_text()
    first = load_from_disk(str(tmp_path / 'work/interrupted.pth'))['meta']

    process = start(['tools/dist_train.sh', config, 2, '--resume', 'auto'], log)
    wait_for(f'resumed epoch: {first["epoch"]}, iter: {first["iter"]}', process, log)
    wait_for('Epoch(train)', process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143, log.read_text()[-3000:]
    assert load_from_disk(str(tmp_path / 'work/interrupted.pth'))['meta']['iter'] > first['iter']


@pytest.mark.parametrize('fault', ['killed', 'cannot load'])
def test_one_process_ends_all(fault, scenes, tmp_path):
    scenes = shutil.copytree(scenes, tmp_path / 'scenes')
    config, log = config_file(scenes, tmp_path, epochs=200), tmp_path / 'log'
    process = start(['tools/dist_train.sh', config, 2], log)
    wait_for('Epoch(train)   [1]', process, log)
    started = workers(process)
    if fault == 'killed':
        os.kill(started[1], signal.SIGKILL)
    else:
        (scenes / 'images/train/000003.jpg').unlink()
    # A minute, and as much again for a machine that is busy with other things.
    assert process.wait(120) == 1, log.read_text()[-3000:]
    told = 'Signal 9 (SIGKILL)' if fault == 'killed' else f'cannot load {scenes}/images/train/000003.jpg'
    assert told in log.read_text()
    assert len(started) == 2 and not any(Path(f'/proc/{pid}').exists() for pid in started)


def test_two_nodes(scenes, tmp_path):
    config, log = config_file(scenes, tmp_path, epochs=1), tmp_path / 'log'
    process = start(['tests/two_nodes.sh', config, 1], log)
    code = process.wait(300)
    if code == 77:
        pytest.skip(log.read_text().strip().splitlines()[-1])
    assert code == 0, log.read_text()[-3000:]
    assert 'Epoch(train) [1][2/2]' in log.read_text()  # 6 images, 2 a process
    assert load_from_disk(str(tmp_path / 'work/epoch_1.pth'))['meta']['iter'] == 2

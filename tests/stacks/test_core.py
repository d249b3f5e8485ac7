"""What has to work on every stack that is supported, with torch and mmengine alone: `make test-stacks`."""
import argparse
import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from safetensors.torch import save_file

from cmt_backbones import CMT, ConvNeXt

ROOT = Path(__file__).parents[2]
ARCHS = dict(
    CMT=dict(stem_channels=4, embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), mlp_ratio=2, pretrain_img_size=32),
    ConvNeXt=dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), use_grn=False))
KINDS = dict(CMT=CMT, ConvNeXt=ConvNeXt)


def build(kind, **options):
    torch.manual_seed(0)
    return KINDS[kind](ARCHS[kind], **dict(dict(drop_path_rate=0.), **options))


def gradients(backbone, x):
    sum(out.double().square().mean() for out in backbone(x)).backward()
    return {name: p.grad for name, p in backbone.named_parameters()}


@pytest.mark.parametrize('kind', KINDS)
def test_forward_and_backward_with_and_without_recomputing(kind):
    x = torch.rand(2, 3, 64, 96)
    # In float32 a stem's gradient is a small sum of large terms, whose rounding depends on the order of adding.
    plain, again = (gradients(build(kind, with_cp=with_cp).double().train(), x.double()) for with_cp in (False, True))
    assert plain.keys() == again.keys() and all(g is not None and g.isfinite().all() for g in plain.values())
    for name, value in plain.items():
        assert torch.allclose(value, again[name], rtol=1e-9, atol=1e-12), name
    backbone = build(kind).eval()
    with torch.no_grad():
        outs = backbone(x)
        assert [tuple(out.shape[1:]) for out in outs] == [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3)]
        backbone.switch_to_deploy()
        for out, folded in zip(outs, backbone(x)):
            assert torch.allclose(out, folded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_autocast(kind):
    x, backbone = torch.rand(1, 3, 64, 64), build(kind)
    exact = backbone.eval()(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = backbone(x)
        found = gradients(backbone.train(), x)
    for out, expected in zip(outs, exact):
        assert (out.float() - expected).norm() < .1 * expected.norm()
    assert all(g.isfinite().all() for g in found.values())


@pytest.mark.parametrize('modes', [(True, False), (False, True)], ids=['training first', 'inference first'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_compiler_may_look_at_it(kind, modes):
    x, backbone = torch.rand(1, 3, 64, 96), build(kind)
    for training in modes:
        backbone.train(training)
        if sys.version_info[:3] == (3, 13, 0):
            torch._dynamo.reset()  # PyTorch would go on with the graph of the other mode there (docs/inference.md)
        for out, expected in zip(torch.compile(backbone, backend='eager', dynamic=True)(x), backbone(x)):
            assert torch.allclose(out, expected, rtol=1e-4, atol=1e-5)


def saved(content, path, **options):
    torch.save(content, path, **options)


CHECKPOINTS = {
    'plain': saved,
    'before torch 1.6': lambda state, path: saved(state, path, _use_new_zipfile_serialization=False),
    'official training': lambda state, path: saved(dict(model=state, args=argparse.Namespace(lr=1)), path),
    'official training before torch 1.6': lambda state, path: saved(
        dict(model=state, args=argparse.Namespace(lr=1)), path, _use_new_zipfile_serialization=False),
    'mmengine': lambda state, path: saved(
        dict(state_dict={f'backbone.{k}': v for k, v in state.items()}, meta={}, message_hub={}), path),
    'safetensors': lambda state, path: save_file({k: v.contiguous() for k, v in state.items()}, path),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('form', CHECKPOINTS)
def test_checkpoints_of_all_kinds(form, kind, tmp_path):
    path = tmp_path / ('w.safetensors' if form == 'safetensors' else 'w.pth')
    state = build(kind).state_dict()
    CHECKPOINTS[form](state, path)
    model = MODELS.build(dict(type=f'cmt_backbones.{kind}', arch=ARCHS[kind],
                              init_cfg=dict(type='Pretrained', checkpoint=str(path))))
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match='damaged'):
        model.init_weights()


# ---------------------------------------------------------------------------- runs


@MODELS.register_module(force=True)
class ToyModel(BaseModel):

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, inputs, mode):
        return dict(loss=sum(out.square().mean() for out in self.backbone(torch.stack(inputs))))


@DATASETS.register_module(force=True)
class ToyImages:
    metainfo = {}

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = torch.Generator().manual_seed(index)
        return dict(inputs=torch.rand(3, 32, 32, generator=image) + .1 * torch.rand(1))  # an augmentation

    def get_data_info(self, index):
        return {}


@HOOKS.register_module(force=True)
class StopAt(Hook):
    """Sends this process SIGTERM, before an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def config(work_dir, epochs=2, **options):
    return Config(dict(
        custom_imports=dict(imports=['cmt_backbones', 'cmt_backbones.openmmlab']), default_scope='mmengine',
        model=dict(type='ToyModel', backbone=dict(type='CMT', arch=ARCHS['CMT'], drop_path_rate=.3)),
        work_dir=str(work_dir), log_level='WARNING', experiment_name=Path(work_dir).name + str(time.time()),
        train_dataloader=dict(dataset=dict(type='ToyImages'), batch_size=2, num_workers=1, persistent_workers=True,
                              sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), randomness=dict(seed=3),
        env_cfg=dict(mp_cfg=dict(mp_start_method='fork')),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3),
                           constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
                           paramwise_cfg=dict(decay_rate=.7)),
        param_scheduler=dict(type='LinearLR', start_factor=.1, by_epoch=False, begin=0, end=6),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1,
                                           backend_args=dict(backend='whole'))),
        custom_hooks=[dict(type='ResumableRandomness'), dict(type='SaveOnSigterm'), dict(type='FiniteLossHook'),
                      dict(type='EMAHook', momentum=.1)], **options))


def train(cfg):
    Runner.from_cfg(cfg).train()


def assert_equal(one, other, place=''):
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, (dict, list, tuple)):
        items = one.items() if isinstance(one, dict) else enumerate(one)
        assert len(one) == len(other), place
        for key, value in items:
            assert_equal(value, other[key], f'{place}.{key}')
    else:
        assert one == other, place


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The last checkpoint of a run that was not stopped."""
    folder = tmp_path_factory.mktemp('whole')
    train(config(folder))
    return folder / 'epoch_2.pth'


def assert_same_run(one, other):
    from cmt_backbones.openmmlab import load_from_disk
    one, other = load_from_disk(str(one)), load_from_disk(str(other))
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(one[key], other[key], key)


@pytest.mark.parametrize('missing', ['', 'sigwaitinfo', 'pthread_sigmask'])
def test_a_run_that_sigterm_stops_and_that_resumes(missing, whole, tmp_path, monkeypatch):
    from cmt_backbones.openmmlab import load_from_disk
    if missing:  # as on macOS, as on Windows
        monkeypatch.delattr(signal, missing)
    cfg = config(tmp_path / 'stopped')
    cfg.custom_hooks.append(dict(type='StopAt', iteration=5))
    with pytest.raises(SystemExit) as stopped:
        train(cfg)
    assert stopped.value.code == 143
    assert load_from_disk(str(tmp_path / 'stopped/interrupted.pth'))['meta']['iter'] == 6
    train(config(tmp_path / 'stopped', resume=True))  # by mmengine's own reader
    assert_same_run(whole, tmp_path / 'stopped/epoch_2.pth')
    assert [path.name for path in (tmp_path / 'stopped').glob('*.p*t*')] == ['epoch_2.pth']  # nor a .partial


def test_a_runner_of_arguments(whole, tmp_path):
    for epochs in (1, 2):
        cfg = config(tmp_path, epochs, resume=epochs == 2)
        runner = Runner(**{name: cfg[name] for name in inspect.signature(Runner).parameters if name in cfg})
        assert not runner.cfg
        runner.train()
    assert_same_run(whole, tmp_path / 'epoch_2.pth')


def test_weights_by_load_from(whole, tmp_path):
    from cmt_backbones.openmmlab import load_from_disk
    cfg = config(tmp_path, load_from=str(whole))
    cfg.custom_hooks.pop()  # EMAHook, which has no average before a training
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    assert_equal(runner.model.state_dict(), load_from_disk(str(whole))['state_dict'])


def test_systems_without_file_locks_and_signals():
    script = """
        import signal, sys
        sys.modules['fcntl'] = None
        del signal.pthread_sigmask, signal.sigwaitinfo, signal.sigwait
        import cmt_backbones, cmt_backbones.openmmlab
        print(len(cmt_backbones.ConvNeXt('v2_atto').stages))
    """
    command = [sys.executable, '-c', '\n'.join(line.strip() for line in script.splitlines())]
    found = subprocess.run(command, env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True, capture_output=True)
    assert found.returncode == 0 and found.stdout == '4\n', found.stderr

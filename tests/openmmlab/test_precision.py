"""--amp and --no-tf32 of the tools: what they set, and that a training by them computes so."""
import pytest
import torch
from mmengine.config import Config
from torch import nn

import small_runs
import tool
from cmt_backbones import openmmlab
from cmt_backbones.models.casting import Conv2d
from cmt_backbones.openmmlab import amp, inference
from cmt_backbones.openmmlab.options import tf32


@pytest.fixture(autouse=True)
def as_it_was():
    with tf32(False):
        yield


def precision():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize('amp, gpu, kind, dtype, scale', [
    ('bf16', True, 'AmpOptimWrapper', 'bfloat16', 1.),
    ('fp16', True, 'AmpOptimWrapper', 'float16', 'dynamic'),
    ('bf16', False, 'cmt_backbones.openmmlab.CPUAmpOptimWrapper', 'bfloat16', None),
    ('fp16', False, 'AmpOptimWrapper', 'float16', 'dynamic'),  # which fit_to_device turns to float32, with a word
])
def test_amp(amp, gpu, kind, dtype, scale, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    for before in ('OptimWrapper', 'AmpOptimWrapper'):
        cfg = Config(dict(optim_wrapper=dict(type=before, clip_grad=dict(max_norm=1.))))
        openmmlab.use_amp(cfg, amp)
        assert cfg.optim_wrapper == dict(type=kind, dtype=dtype, clip_grad=dict(max_norm=1.),
                                         **({} if scale is None else dict(loss_scale=scale)))
        told = openmmlab.fit_to_device(cfg)
        assert (told is not None) == (amp == 'fp16' and not gpu)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale=512.)
    openmmlab.use_amp(cfg, amp)
    assert cfg.optim_wrapper.get('loss_scale') == (None if scale is None else 512.)


def test_amp_is_refused_for_another_wrapper():
    with pytest.raises(SystemExit, match='--amp works with an OptimWrapper, and the config has ApexOptimWrapper'):
        openmmlab.use_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))), 'bf16')


@pytest.mark.parametrize('name, wanted', [
    ('backbone', True), ('neck', True), ('bbox_head', True), ('rpn_head', True), ('roi_head', False),
    ('roi_head.bbox_head.2', True), ('roi_head.mask_head', True), ('decode_head', True), ('backbone.stem', False),
    ('bbox_head.cls_convs.0', False)])
def test_what_is_computed_by_amp(name, wanted):
    assert bool(amp.PARTS_BY_AMP.search(name)) == wanted


@pytest.mark.parametrize('bf16', [True, False])
def test_a_test_by_amp(config, bf16, tmp_path, monkeypatch):
    """Heads get and give float32 whatever is computed in between."""
    monkeypatch.setattr(amp, 'has_bf16', lambda: bf16)
    cfg = openmmlab.config_from_file(config)
    model = inference.build_model(cfg)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=model.dataset_meta)), tmp_path / 'w.pth')
    seen = {}

    def look(module, inputs, out):
        if isinstance(module, nn.Conv2d):
            seen.setdefault('convolutions', set()).add(out.dtype)
        elif type(module).__name__ == 'RetinaHead':
            seen['head'] = {x.dtype for level in out for x in level}
    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        tool.run('test', config, tmp_path / 'w.pth', '--work-dir', tmp_path, '--no-check', '--amp')
    finally:
        handle.remove()
    assert seen == dict(convolutions={torch.bfloat16 if bf16 else torch.float32}, head={torch.float32})


def test_tf32_for_a_while():
    openmmlab.use_tf32(True)
    with tf32(False):
        assert precision() == ('highest', False)
    assert precision() == ('high', True)
    with pytest.raises(KeyError), tf32(False):
        raise KeyError
    assert precision() == ('high', True)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('precision')
    cfg = small_runs.detector(small_runs.draw(folder / 'scenes', images=4, val=2), folder / 'work', workers=0)
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.merge_from_dict(dict(train_cfg=dict(max_epochs=1)))
    cfg.param_scheduler = []
    cfg.pop('experiment_name')
    cfg.dump(folder / 'small.py')
    return folder / 'small.py'


@pytest.mark.parametrize('arguments, dtype, expected', [
    (['--amp', 'bf16', '--no-tf32'], torch.bfloat16, ('highest', False)), ([], torch.float32, ('high', True))])
def test_a_training(config, arguments, dtype, expected, tmp_path):
    """In bf16 on this CPU: what layers of backbone and head compute, in training and in the validation behind it."""
    seen, depthwise = {True: set(), False: set()}, set()

    def look(module, inputs, out):
        if type(module) is Conv2d and module.groups > 1 and module.training:  # in float32 on CPUs
            depthwise.add(out.dtype)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            seen[module.training].add(out.dtype)
    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        tool.run('train', config, '--work-dir', tmp_path, '--no-check', *arguments)
    finally:
        handle.remove()
    assert seen[True] == {dtype} and seen[False] == {torch.float32} and precision() == expected
    assert depthwise == {torch.float32}
    state = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    assert all(value.dtype != torch.bfloat16 and value.isfinite().all() for value in state.values())
    moved = [name for name, value in state.items() if name.endswith('retina_cls.bias') and len(value.unique()) > 1]
    assert moved  # it starts as one number


def test_a_test_without_tf32(config, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*args, **kwargs):
        raise Stop
    monkeypatch.setattr(openmmlab.BriefRunner, 'from_cfg', stop)
    for arguments, expected in ([], ('high', True)), (['--no-tf32'], ('highest', False)):
        with pytest.raises(Stop):
            tool.run('test', config, 'x.pth', '--work-dir', tmp_path, '--no-check', *arguments)
        assert precision() == expected

"""tools/train.py and tools/test.py on data of one's own: what they show, and what they refuse, in one line."""
import contextlib
import io
import logging
import re
import runpy
import sys
import warnings

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import BaseLoop, Runner

import small_runs
import tool
from cmt_backbones import openmmlab
from cmt_backbones.openmmlab import matching, services
from cmt_backbones.openmmlab.terminal import Brief
from cmt_backbones.training import preflight


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The config file of a small detector on drawn scenes, of one epoch."""
    folder = tmp_path_factory.mktemp('own')
    scenes = small_runs.draw(folder / 'scenes')
    cfg = small_runs.detector(scenes, folder / 'work', workers=0)
    cfg.optim_wrapper.type, cfg.log_level = 'AmpOptimWrapper', 'INFO'
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'EMAHook']
    cfg.model.test_cfg.score_thr = 0.  # after an epoch, nothing would be above the real threshold
    cfg.merge_from_dict(dict(train_cfg=dict(max_epochs=1), default_hooks=dict(logger=dict(interval=50))))
    cfg.param_scheduler = cfg.param_scheduler[:1]
    cfg.param_scheduler[0].end = 2
    cfg.pop('experiment_name')
    cfg.dump(folder / 'small.py')
    return folder / 'small.py'


@pytest.fixture(scope='module')
def trained(config):
    """What a training by the command showed, its log, and its checkpoint."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        tool.run('train', config, '--tensorboard')
    work = config.parent / 'work'
    log, = work.glob('*/*.log')
    return shown.getvalue(), log.read_text(), work / 'epoch_1.pth'


def test_a_training_shows_what_matters(trained):
    shown, log, _ = trained
    before, _ = shown.split('Epoch(train) [1][1/5]')  # the first iteration is told, and the last of a short epoch
    assert len(before.splitlines()) < 40 and 'Epoch(train) [1][5/5]' in shown
    assert ('RetinaNet on 9 images of 5 classes: 1 epochs of 5 iterations, 2 images a step, on cpu by '
            'OptimWrapper') in before
    assert 'no GPU here: training in float32 instead of mixed precision' in before
    assert 'System environment' not in shown and 'param_scheduler = [' not in shown
    for part in ('System environment', 'param_scheduler = [', 'Hooks will be executed', 'creating index...', *(
            line.split(' - ')[-1] for line in before.splitlines() if ' - mmengine - ' in line)):
        assert part in log


def test_what_is_logged_to_a_service_has_images(trained):
    folder = trained[2].parent
    assert any(folder.glob('*/vis_data/events.out.tfevents.*'))
    assert any(folder.glob('*/vis_data/vis_image/val_img_*.png'))


def test_weights_and_biases(config, tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    tool.run('train', config, '--wandb', '--no-check', '--work-dir', tmp_path, '--cfg-options', 'visualizer.name=wandb')
    assert [*tmp_path.glob('*/vis_data/wandb/offline-run-*/files/media/images/val_img_*.png')]


def test_mlflow_without_a_server(config, tmp_path):
    mlflow = pytest.importorskip('mlflow')
    for number in range(2):  # each start is a run of its own
        tool.run('train', config, '--mlflow', '--no-check', '--work-dir', tmp_path / 'small', '--cfg-options',
                 f'visualizer.name=mlflow{number}')
    client = mlflow.MlflowClient(f'sqlite:///{tmp_path}/small/mlflow.db')
    for run in client.search_runs([client.get_experiment_by_name('small').experiment_id]):
        assert run.info.status == 'FINISHED' and run.data.metrics['loss'] > 0
        assert 'coco/bbox_mAP_50' in run.data.metrics and run.data.params['model.type'] == 'RetinaNet'
        names = [one.path for one in client.list_artifacts(run.info.run_id)]
        assert 'config.py' in names and 'val_img_5.png' in names and sum(name.endswith('.log') for name in names) == 1
    assert not [*tmp_path.glob('small/mlflow/*/artifacts/*/*')]


def test_what_mlflow_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    for server in (None, 'http://localhost:5000'):
        if server:
            monkeypatch.setenv('MLFLOW_TRACKING_URI', server)
        cfg = Config(dict(work_dir=f'{tmp_path}/small', visualizer={}))
        openmmlab.log_to(cfg, 'mlflow')
        options, = cfg.visualizer.vis_backends
        assert options.exp_name == 'small'
        assert options.tracking_uri == (server or f'sqlite:///{tmp_path}/small/mlflow.db')
    told = []
    client = type('Client', (), dict(__getattr__=lambda self, name: lambda *args: told.append((name, *args[-1:]))))
    backend = services.MLflow(str(tmp_path / 'small/vis_data'))
    backend._mlflow, backend._env_initialized = client(), True
    (tmp_path / 'small').mkdir()
    (tmp_path / 'small/a.log').touch()
    backend.add_image('val_img', np.zeros((2, 2, 3), np.uint8), 5)
    backend.close()
    assert told == [('log_image', 'val_img_5.png'), ('log_artifact', f'{tmp_path}/small/a.log'), ('end_run', )]


def test_compiling_needs_a_compiler(refused, monkeypatch):
    monkeypatch.setenv('CXX', 'nowhere-g++')
    assert refused('train', '--compile') == (
        'train: --compile needs a C++ compiler (nowhere-g++) on CPUs: apt-get install g++ python3-dev')


def test_a_test_shows_what_matters(config, trained, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('PATH', str(tmp_path))  # no compiler, whose version mmengine asks a shell for
    tool.run('test', config, trained[2], '--work-dir', tmp_path)
    shown, errors = capfd.readouterr()
    assert len(shown.splitlines()) < 30 and 'coco/bbox_mAP_50: ' in shown and 'Average Precision' in shown
    assert 'not found' not in errors
    log, = tmp_path.glob('*/*.log')
    for part in ('System environment', 'GCC: n/a', 'Loads checkpoint by disk backend'):
        assert part in log.read_text() and part not in shown


def test_quiet(config, trained, tmp_path, capsys):
    tool.run('test', config, trained[2], '--work-dir', tmp_path, '--quiet')
    shown = [line for line in capsys.readouterr().out.splitlines() if ' - INFO - ' in line]
    assert len(shown) == 1 and 'Epoch(test)' in shown[0] and 'coco/bbox_mAP_50: ' in shown[0]
    log, = tmp_path.glob('*/*.log')
    assert 'Average Precision' in log.read_text()


@pytest.fixture
def refused(config, trained, tmp_path):
    """What a command says in place of starting; it must be one line."""
    def run(command, *arguments):
        with pytest.raises(SystemExit) as error:
            tool.run(command, config, *arguments, '--work-dir', tmp_path / 'refused')
        assert '\n' not in str(error.value)
        return str(error.value)
    return run


ARCH = 'model.backbone.arch.embed_dims=[8,16,32,32]'


def test_a_checkpoint_of_another_config_is_not_tested(refused, trained, tmp_path):
    said = refused('test', trained[2], '--cfg-options', ARCH, 'model.neck.in_channels=[16,32,32]')
    assert re.match(r'test: .*epoch_1.pth is not of this config: [0-9]+ of [0-9]+ weights are not in it or have '
                    r'another shape; model.backbone.arch.embed_dims\[2\] is 24 there and 32 here; ', said)
    said = refused('test', trained[2], '--cfg-options', 'model.backbone.arch.depths=[1,1,1,1]')
    assert 'weights are not in the model' in said and 'model.backbone.arch.depths[2] is 2 there and 1 here' in said
    assert 'cannot read the checkpoint nowhere.pth: nowhere.pth cannot be found' in refused('test', 'nowhere.pth')
    (tmp_path / 'torn.pth').write_bytes(trained[2].read_bytes()[:-2000])
    assert 'cannot read the checkpoint' in refused('test', tmp_path / 'torn.pth')
    torch.save(dict(state_dict={'stem.0.weight': torch.zeros(1)}), tmp_path / 'backbone.pth')
    said = refused('test', tmp_path / 'backbone.pth')
    assert 'has no weights of a whole model' in said and 'model.backbone.init_cfg=dict' in said


def test_classes_in_another_order_are_not_tested(refused, trained):
    classes = "('cross', 'rectangle', 'triangle', 'star', 'ellipse')".replace(' ', '')
    said = refused('test', trained[2], '--cfg-options', f'test_dataloader.dataset.metainfo.classes={classes}')
    assert 'was trained on the same classes in another order: 5 classes (ellipse, rectangle, triangle, ...)' in said


def test_a_head_may_start_anew_if_that_is_said(refused, config, trained, tmp_path, capsys):
    other = ['--cfg-options', f'load_from={trained[2]}', 'model.bbox_head.stacked_convs=2',
             'model.bbox_head.feat_channels=8']
    said = refused('train', *other)
    assert 'model.bbox_head.feat_channels is 16 there and 8 here' in said
    assert said.endswith('or, to train another head on its backbone and neck, --new-head')
    said = refused('train', '--new-head', *other, ARCH, 'model.neck.in_channels=[16,32,32]')
    assert 'is not of this config' in said and 'model.backbone.arch.embed_dims[2] is 24 there and 32 here' in said
    tool.run('train', config, '--new-head', '--no-check', '--work-dir', tmp_path, *other)
    shown = capsys.readouterr().out
    assert re.search(r'[0-9]+ of [0-9]+ weights start anew, since .*: bbox_head\.', shown)
    assert 'size mismatch' not in shown and 'missing keys' not in shown


@pytest.mark.parametrize('options, what', [
    (['optim_wrapper.optimizer._delete_=True', 'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.1',
      'optim_wrapper.optimizer.momentum=0.9'],
     'the optimizer there has amsgrad, betas, SGD has momentum, nesterov'),
    (['optim_wrapper.constructor=LayerDecayOptimWrapperConstructor', 'optim_wrapper.paramwise_cfg.decay_rate=0.5'],
     r'the optimizer has 1 groups of parameters there and [0-9]+ here \(paramwise_cfg, layer decay\)'),
    ([ARCH, 'model.neck.in_channels=[16,32,32]'], r'model.backbone.arch.embed_dims\[2\] is 24 there and 32 here')],
    ids=['optimizer', 'groups', 'arch'])
def test_another_config_does_not_resume(options, what, refused, trained):
    said = refused('train', '--resume', trained[2], '--cfg-options', 'train_cfg.max_epochs=2', *options)
    assert 'is not of this config' in said and re.search(what, said), said


def test_other_classes_do_not_resume(trained):
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=('a', 'b'))))
    assert matching.class_differences(checkpoint, ('a', 'c')) == ['2 classes (a, b) there, 2 classes (a, c) here']
    assert matching.class_differences(checkpoint, ('a', 'b')) == []


def test_a_config_in_a_checkpoint_is_read_and_not_run(tmp_path):
    text = f"model = dict(a=[1, (2., None)], b={{'c': 'd'}})\nopen({str(tmp_path / 'FIRED')!r}, 'w')\n"
    assert matching.written_config(text) == dict(model=dict(a=[1, (2., None)], b=dict(c='d')))
    assert matching.written_config(f"model = open({str(tmp_path / 'FIRED')!r}, 'w')") == {}
    assert matching.written_config('model = dict(') == {} and not (tmp_path / 'FIRED').exists()


@pytest.mark.parametrize('command, arguments, what', [
    ('train', ['--wandb'], 'train: --wandb needs the package wandb: pip install wandb'),
    ('train', ['--mlflow'], 'train: --mlflow needs the package mlflow: pip install mlflow'),
    ('train', ['--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'], '--auto-scale-lr needs auto_scale_lr=dict'),
    ('train', ['--cfg-options', 'model.backbone.type.depths=3'], 'train: --cfg-options do not fit the config '),
    ('train', ['--cfg-options', 'model.neck.in_channels=[1,2,3]'], 'train: model.neck: in_channels='),
    ('test', ['x.pth', '--out', 'folder'], '--out of a detector is a .pkl file, not folder')])
def test_switches_that_cannot_be(command, arguments, what, refused, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert what in refused(command, *arguments)


@pytest.mark.parametrize('text, what', [
    (None, 'No such file|does not exist|cannot find'), ('model = dict(', 'was never closed'),
    ("_base_ = 'mmdet::_base_/default_runtime.py'\nlog_level = dict(a=1)", '`_delete_=True` to ignore the base')])
def test_a_config_that_cannot_be_read(text, what, tmp_path):
    if text:
        (tmp_path / 'half.py').write_text(text)
    with pytest.raises(SystemExit, match=f'train: cannot read the config .*half.py: (?i:.*{what})'):
        tool.run('train', tmp_path / 'half.py')


def test_mixed_precision_stays_where_there_is_a_gpu(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='bfloat16')))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert openmmlab.fit_to_device(cfg) is None and cfg.optim_wrapper.type == 'AmpOptimWrapper'
    monkeypatch.undo()
    assert 'in float32' in openmmlab.fit_to_device(cfg) and cfg.optim_wrapper == dict(type='OptimWrapper')
    assert openmmlab.fit_to_device(cfg) is None


def test_ctrl_c_without_a_word():
    with pytest.raises(SystemExit) as ended, openmmlab.one_line_errors('test'):
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_warnings_of_others():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        with openmmlab.without_warnings_of_others():
            # The words of setuptools 80 and torch 2.11.
            warnings.warn('pkg_resources is deprecated as an API. See https://setuptools.pypa.io', stacklevel=1)
            warnings.warn('`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec)',
                          FutureWarning, stacklevel=1)
            warnings.warn('Detected call of `scheduler.step()` before `optimizer.step()`. In PyTorch', stacklevel=1)
            warnings.warn('`isinstance(treespec, Leaf)` is deprecated', FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in told] == ['`isinstance(treespec, Leaf)` is deprecated']
    record = logging.LogRecord('mmengine', logging.WARNING, '', 0, '"FileClient" will be deprecated', (), None)
    assert not Brief(quiet=False).filter(record)


def test_iterations_are_logged_by_time_as_well():
    for seconds, logged in ((0, [1] * 6), (1e9, [1, 4, 4, 4, 4, 4])):
        hook = openmmlab.Progress(seconds)
        hook.told, hook.first = 0. if seconds == 0 else float('inf'), True
        logger = type('Logger', (), dict(interval=4))()
        hook.hooks = [(logger, 4)]
        intervals = []
        for i in range(6):
            hook.after_train_iter(None, i)
            intervals.append(logger.interval)
        assert intervals == logged


def test_the_schedule_for_small_data_follows_from_the_length_of_a_run():
    cfg = Config.fromfile(small_runs.ROOT / 'configs/mmdet/_base_/small_data.py')
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 1.)
    runner = Runner.__new__(Runner)
    for epochs, length in ((3, 5), (10, 16)):
        loop = type('Loop', (BaseLoop, ), dict(run=None, max_epochs=epochs, max_iters=epochs * length))
        loop.dataloader = torch.utils.data.DataLoader(range(length))
        runner._train_loop = loop.__new__(loop)
        runner.logger = MMLogger.get_current_instance()
        schedulers = runner._build_param_scheduler(cfg.param_scheduler, optimizer)
        assert [(s.begin, s.end) for s in schedulers] == [(0, length), (0, epochs * length)]


@pytest.fixture(scope='module')
def crops(config):
    folder = config.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['crops.py', str(folder / 'scenes'), str(folder / 'crops')])
        runpy.run_path(str(small_runs.ROOT / 'benchmarks/crops.py'))
    return folder / 'crops'


@pytest.mark.parametrize('name, detector', [
    ('cmt_tiny', 'mask_rcnn_cmt_ti'), ('convnext_tiny', 'retinanet_convnext_t')])
def test_the_detectors_of_the_first_hour_start_from_a_classifier(name, detector, crops, tmp_path, monkeypatch):
    arguments = [name, crops, tmp_path / 'classifier.pth', '--images', '2', '--batch', '2', '--size', '32']
    monkeypatch.setattr(sys, 'argv', ['pretrain.py', *map(str, arguments)])
    runpy.run_path(str(small_runs.ROOT / 'benchmarks/pretrain.py'))
    cfg = Config.fromfile(small_runs.ROOT / f'benchmarks/configs/first_hour_{detector}.py')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'classifier.pth')
    assert list(preflight.check_model(cfg.model)) == []
    backbone = MODELS.build(cfg.model.backbone)
    before = [parameter.clone() for parameter in backbone.parameters()]
    backbone.init_weights()  # which refuses a file that leaves anything out
    assert not any(torch.equal(*both) for both in zip(before, backbone.parameters()) if both[0].ndim == 4)

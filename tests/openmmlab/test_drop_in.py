"""The backbones in configs that mmdet and mmseg ship, by the lines of docs/in_your_project.md; and their
own inferencers and commands on configs of ours."""
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib
import mmdet
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS as DETECTORS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint
from mmseg.registry import MODELS as SEGMENTORS

import operator_cases
import small_runs
import tool
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.openmmlab import config_from_file

PAGE = (tool.ROOT / 'docs' / 'in_your_project.md').read_text()
# What the page swaps in, each named as in its heading.
BLOCKS = dict(re.findall(r'^### (.+?)\n.*?```python\n(.*?)```', PAGE, re.M | re.S))
MMDET = Path(mmdet.__file__).parent / '.mim'


def config(name: str, backbone: str, tmp_path: Path) -> Config:
    """The page's config for a detector or segmentor, with either backbone and without weights."""
    text = BLOCKS[name].replace("type='CMT'", f'type={backbone!r}')
    if backbone == 'ConvNeXt':
        text = re.sub(r'^ *norm_\w+=.*\n', '', text, flags=re.M)
        for stage in range(4):
            text = re.sub(rf'\b{46 * 2**stage}\b', str(96 * 2**stage), text)
    (tmp_path / 'config.py').write_text(text)
    cfg = config_from_file(tmp_path / 'config.py')
    assert cfg.model.backbone.type == backbone and cfg.model.backbone.arch == 'tiny'
    del cfg.model.backbone['init_cfg']
    return cfg


def test_the_page_has_the_five():
    assert list(BLOCKS) == ['Faster R-CNN', 'RTMDet', 'DINO', 'SegFormer', 'Mask2Former']


@pytest.mark.parametrize('backbone', ['CMT', 'ConvNeXt'])
@pytest.mark.parametrize('name', BLOCKS)
def test_a_config_of_others_trains_and_predicts(name, backbone, tmp_path, monkeypatch):
    operator_cases.take_ours(monkeypatch)  # in an environment with compiled operators, too
    cfg = config(name, backbone, tmp_path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if cfg.default_scope == 'mmdet':
            registry = DETECTORS
            data = detection_batch(name)
            for test_cfg in (cfg.model.test_cfg, cfg.model.test_cfg.get('rcnn', {})):
                test_cfg['score_thr'] = 0.  # untrained, nothing would be above the real threshold
        else:
            registry = SEGMENTORS
            data = segmentation_batch()
        torch.manual_seed(0)
        model = revert_sync_batchnorm(registry.build(cfg.model)).train()
        if name == 'DINO':
            model.init_weights()  # until then, some of it is whatever the memory held
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        loss, _ = model.parse_losses(losses)
        assert loss.isfinite()
        loss.backward()
        for key, p in model.backbone.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), key
        assert any(p.grad.any() for p in model.backbone.parameters())

        with torch.no_grad():
            sample, = model.eval().test_step(data)
    if cfg.default_scope == 'mmdet':
        found = sample.pred_instances
        assert found.bboxes.isfinite().all() and found.scores.isfinite().all()
        assert len(found)
    else:
        assert sample.pred_sem_seg.shape == (64, 96) and sample.seg_logits.data.isfinite().all()


def detection_batch(name):
    from mmdet.testing import demo_mm_inputs
    size = (256, 320) if name == 'DINO' else (64, 96)  # it picks 900 places, which must be there
    return demo_mm_inputs(1, (3, *size), num_items=[3], num_classes=80)


def segmentation_batch():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    sample = SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96)))
    sample.gt_sem_seg = PixelData(data=torch.arange(64 * 96).view(1, 64, 96) // 500)
    return dict(inputs=[torch.randint(256, (3, 64, 96), dtype=torch.uint8)], data_samples=[sample])


# ---------------------------------------------------------------------------- inferencers


def checkpoint(path: Path, name: str, meta: dict) -> list[str]:
    """The config of ours and a checkpoint of it with random weights."""
    file = tool.ROOT / 'configs' / f'{name}.py'
    cfg = config_from_file(file)
    try:
        Config.fromfile(file)
    except ModuleNotFoundError as error:  # of onedl-mmengine: it has the config that a training leaves
        assert 'mmsegmentation is not installed' in str(error) and name.startswith('mmseg/')
        file = path / f'{cfg.default_scope}.py'
        cfg.dump(file)
    from mmengine.registry import MODELS
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        save_checkpoint(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=dict(dataset_meta=meta)),
                        str(path / 'weights.pth'))
    return [str(file), str(path / 'weights.pth')]


def test_det_inferencer(tmp_path, shapes):
    from mmdet.apis import DetInferencer
    model = checkpoint(tmp_path, 'mmdet/retinanet_cmt_ti_shapes', dict(classes=shapes.classes))
    with DefaultScope.overwrite_default_scope('mmdet'):
        inferencer = DetInferencer(*model, device='cpu', palette='random', show_progress=False)
        found = inferencer(str(shapes.folder / 'images/val'), out_dir=str(tmp_path / 'out'),
                           no_save_pred=False)
    assert len(found['predictions']) == 2 and {*found['predictions'][0]} == {'labels', 'scores', 'bboxes'}
    assert {p.name for p in (tmp_path / 'out/vis').iterdir()} == {'000000.jpg', '000001.jpg'}
    assert len([*(tmp_path / 'out/preds').iterdir()]) == 2


def test_mmseg_inferencer(tmp_path, shapes):
    from mmseg.apis import MMSegInferencer
    palette = [[i, 2 * i, 3 * i] for i in range(6)]
    model = checkpoint(tmp_path, 'mmseg/upernet_cmt_ti_shapes',
                       dict(classes=('background', *shapes.classes), palette=palette))
    with DefaultScope.overwrite_default_scope('mmseg'):
        inferencer = MMSegInferencer(*model, device='cpu')
        inferencer.show_progress = False
        found = inferencer([str(p) for p in sorted((shapes.folder / 'images/val').iterdir())],
                           out_dir=str(tmp_path / 'out'))
    assert [labels.shape for labels in found['predictions']] == [(128, 160)] * 2
    assert np.max(found['predictions']) < 6
    assert {p.name for p in (tmp_path / 'out/vis').iterdir()} == {'000000.jpg', '000001.jpg'}


# ---------------------------------------------------------------------------- mmdet's commands


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    from types import SimpleNamespace
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    drawn_scenes.make_shapes(folder, 8, 2, 0, [(160, 128)])
    return SimpleNamespace(folder=folder, classes=drawn_scenes.CLASSES)


def run(*command) -> str:
    """What a command of mmdet's prints; it must end well."""
    env = dict(os.environ, OMP_NUM_THREADS='1', MPLBACKEND='agg',
               PYTHONPATH=os.pathsep.join([str(tool.ROOT), os.environ.get('PYTHONPATH', '')]))
    # mmdet's commands import mmdet before they read a config, and on an mmcv-lite that needs operators.
    code = ('import runpy, sys, cmt_backbones.openmmlab; sys.argv = sys.argv[1:]; '
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, '-c', code, *map(str, command)], cwd=tool.ROOT, env=env, text=True,
                          timeout=350, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    """The config and the work dir of mmdet's own training command."""
    work_dir = tmp_path_factory.mktemp('work')
    options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1',
               'model.test_cfg.score_thr=0.0',  # untrained, nothing would be above the real threshold
               f'val_evaluator.ann_file={shapes.folder}/annotations/val.json',
               f'test_evaluator.ann_file={shapes.folder}/annotations/val.json']
    options += [f'{split}_dataloader.dataset.data_root={shapes.folder}/'
                for split in ('train', 'val', 'test')]
    run(MMDET / 'tools/train.py', 'configs/mmdet/retinanet_cmt_ti_shapes.py', '--work-dir', work_dir,
        '--cfg-options', *options)
    return work_dir / 'retinanet_cmt_ti_shapes.py', work_dir


def test_mmdets_training_command(trained):
    _, work_dir = trained
    assert (work_dir / 'epoch_1.pth').is_file()
    log, = work_dir.glob('*/vis_data/scalars.json')
    text = log.read_text()
    assert '"loss_bbox": ' in text and '"coco/bbox_mAP": ' in text


@pytest.fixture
def analyse(monkeypatch, capsys):
    """Runs one of mmdet's analysis commands and returns what it prints."""
    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(MMDET / 'tools/analysis_tools' / name), run_name='__main__')
        return capsys.readouterr().out
    matplotlib.use('agg')
    return run


def test_mmdets_analysis_of_logs(trained, analyse, tmp_path):
    log, = trained[1].glob('*/vis_data/scalars.json')
    picture = tmp_path / 'curve.png'
    # In onedl-mmdetection the default is a style of seaborn, which it does not use.
    tool = MMDET / 'tools/analysis_tools/analyze_logs.py'
    style = [] if 'sns.set_style' in tool.read_text() else ['--style', 'ggplot']
    analyse('analyze_logs.py', 'plot_curve', log, '--keys', 'loss_cls', 'loss_bbox', '--out', picture, *style)
    assert picture.stat().st_size > 5000
    assert 'average iter time' in analyse('analyze_logs.py', 'cal_train_time', log)


def test_mmdets_analysis_of_predictions(trained, analyse, tmp_path):
    config, work_dir = trained
    out = tmp_path / 'predictions.pkl'
    run(MMDET / 'tools/test.py', config, work_dir / 'epoch_1.pth', '--work-dir', tmp_path, '--out', out)
    analyse('confusion_matrix.py', config, out, tmp_path)
    assert (tmp_path / 'confusion_matrix.png').stat().st_size > 5000
    assert 'bbox_mAP' in analyse('eval_metric.py', config, out)


def test_mmdets_flops_and_pictures_of_the_data(trained, analyse, tmp_path):
    config, _ = trained
    assert re.search(r'Flops: \d', analyse('get_flops.py', config, '--num-images', 1))
    analyse('browse_dataset.py', config, '--output-dir', tmp_path, '--not-show', '--show-interval', 0)
    assert len([*tmp_path.iterdir()]) == 8


def test_mmdets_semi_supervised_training(tmp_path):
    """Its student goes forward for labelled images, then for those that the teacher labels, then backward."""
    cfg = small_runs.detector(tmp_path, tmp_path)
    cfg.model.backbone.norm_eval = False
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = DETECTORS.build(dict(
            type='SemiBaseDetector', detector=cfg.model,
            semi_train_cfg=ConfigDict(freeze_teacher=True, sup_weight=1., unsup_weight=1., cls_pseudo_thr=0.,
                                      min_pseudo_bbox_wh=(1e-2, 1e-2)),
            semi_test_cfg=dict(predict_on='teacher'))).train()
        parts = 'sup', 'unsup_teacher', 'unsup_student'
        batches = {part: model.student.data_preprocessor(demo_mm_inputs(2, (3, 64, 96), num_items=[5, 5],
                                                                        num_classes=5), True) for part in parts}
        for batch in batches.values():
            for sample in batch['data_samples']:
                sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype='float32')))
        losses = model.loss({part: batches[part]['inputs'] for part in parts},
                            {part: batches[part]['data_samples'] for part in parts})
    total, terms = model.parse_losses(losses)
    assert terms['sup_loss_cls'] > 0 and terms['unsup_loss_cls'] > 0
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.student.parameters())
    assert not any(p.requires_grad for p in model.teacher.parameters())

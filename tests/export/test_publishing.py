"""A training's checkpoint as a file that others use by name: what it holds, its card, and from a second machine."""
import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from safetensors import safe_open

import hub_server
import small_runs
import tool
from cmt_backbones import CMT
from cmt_backbones.export.publishing import PublishError, licence_of
from cmt_backbones.openmmlab.checkpoints import load_from_disk
from cmt_backbones.weights import load_pretrained
from cmt_backbones.weights.published import read_header

publish = tool.load('publish')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A small detector, trained for two epochs on drawn scenes."""
    folder = tmp_path_factory.mktemp('run')
    scenes = small_runs.draw(folder / 'scenes')
    cfg = small_runs.detector(scenes, folder / 'work', workers=0)
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.model.test_cfg.score_thr = 0.  # after so little training nothing is above the real one
    cfg.experiment_name = 'tiny_detector'
    small_runs.train(cfg)
    return SimpleNamespace(scenes=scenes, checkpoint=folder / 'work/epoch_2.pth', arch=small_runs.ARCH)


def published(run, out, *options):
    publish.main([str(run.checkpoint), '--out', str(out), '--licence', 'apache-2.0', *options])
    weights, = out.glob('*.safetensors')
    return weights


def test_what_the_file_holds(run, tmp_path, capsys):
    weights = published(run, tmp_path)
    assert f'{weights}: ' in capsys.readouterr().out
    digits = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    assert weights.name == f'tiny_detector-{digits}.safetensors'
    content = load_from_disk(str(run.checkpoint))
    with safe_open(weights, 'pt') as file:
        names = set(file.keys())
        assert names == set(content['state_dict'])
        assert all(torch.equal(file.get_tensor(name), content['state_dict'][name]) for name in names)
        metadata = file.metadata()
    assert metadata['format'] == 'pt'  # which transformers and timm ask for
    told = read_header(weights).published
    assert told['dataset_meta']['classes'] == list(content['meta']['dataset_meta']['classes'])
    assert (told['epoch'], told['part'], told['licence']) == (2, 'model', 'apache-2.0')
    assert told['versions']['torch'] == torch.__version__ and len(told['sha256']) == 64
    data = weights.read_bytes()
    assert told['sha256'] == hashlib.sha256(data[8 + int.from_bytes(data[:8], 'little'):]).hexdigest()
    cfg = Config.fromstring(told['config'], '.py')
    assert cfg.model.backbone.arch == run.arch and cfg.work_dir is None
    assert Config.fromfile(tmp_path / 'config.py').model == cfg.model
    log, = run.checkpoint.parent.glob('*/vis_data/scalars.json')
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if 'coco/bbox_mAP' in row]
    assert told['metrics']['coco/bbox_mAP'] == rows[-1]['coco/bbox_mAP'] and 'time' not in told['metrics']


def test_the_card(run, tmp_path):
    weights = published(run, tmp_path)
    card = (tmp_path / 'README.md').read_text()
    assert card.startswith('---\nlicense: apache-2.0\nlibrary_name: cmt_backbones\npipeline_tag: object-detection\n')
    assert '| network | RetinaNet with CMT `' in card and weights.name in card
    log, = run.checkpoint.parent.glob('*/vis_data/scalars.json')
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if 'coco/bbox_mAP' in row]
    head, _, *lines = [[cell.strip() for cell in line.strip('|').split('|')]
                       for line in card.split('## Evaluations of the run')[1].strip().splitlines() if '|' in line]
    assert head[0] == 'epoch' and 'coco/bbox_mAP_50' in head
    for line, row in zip(lines, rows):
        assert dict(zip(head, line)) == {'epoch': str(row['step']), **{
            name: f'{row[name]:.4g}' for name in head[1:]}}
    assert len(lines) == len(rows) == 2 and 'The weights are those of epoch 2.' in card


def test_the_backbone_alone(run, tmp_path):
    weights = published(run, tmp_path, '--part', 'backbone', '--name', 'start')
    assert weights.name.startswith('start_backbone-')
    backbone = CMT(run.arch)
    load_pretrained(backbone, str(weights))
    state = load_from_disk(str(run.checkpoint))['state_dict']
    assert all(torch.equal(value, state[f'backbone.{key}']) for key, value in backbone.state_dict().items())


SECOND_MACHINE = """
import sys, torch
sys.path[:0] = ['tests/helpers', 'tools']
import cmt_backbones.openmmlab
import small_runs, tool
from mmdet.apis import DetInferencer
from mmengine.config import Config
from pathlib import Path
name, scenes, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
from huggingface_hub import hf_hub_download
config = hf_hub_download(name.partition(':')[2], 'config.py')

cfg = small_runs.detector(scenes, out / 'work', workers=0)  # trained from
cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=name)
cfg.optim_wrapper.type, cfg.train_cfg.max_epochs = 'OptimWrapper', 1
runner = small_runs.Runner.from_cfg(cfg)
runner.model.init_weights()
torch.save(runner.model.state_dict(), out / 'start.pth')
runner.train()

sys.argv = ['test.py', config, name, '--work-dir', str(out / 'test')]  # tested
tool.load('test').main()
tool.load('image_demo').main([str(scenes / 'images/val'), config, name, '--out', str(out / 'pictures')])  # drawn
inferencer = DetInferencer(weights=name, device='cpu', show_progress=False)  # by mmdet alone
torch.save(inferencer.model.state_dict(), out / 'inferencer.pth')
print('classes:', inferencer.model.dataset_meta['classes'])
"""


def test_by_name_from_a_second_machine(run, tmp_path, capsys):
    with hub_server.running() as hub:
        with pytest.MonkeyPatch.context() as patch:
            hub_server.use(hub, tmp_path / 'first', patch)
            patch.setenv('HF_TOKEN', 'hf_of_the_test')
            published(run, tmp_path / 'out', '--push', 'me/tiny')
        assert capsys.readouterr().out.endswith('hf-hub:me/tiny: uploaded\n')
        assert {name.split('-')[0] for name in hub.repositories['me/tiny']} == {
            'tiny_detector', 'config.py', 'README.md'}

        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', SECOND_MACHINE, 'hf-hub:me/tiny', str(run.scenes), str(tmp_path)],
            cwd=tool.ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
            env=hub_server.environment(hub, tmp_path / 'second'))
        assert done.returncode == 0, done.stdout[-3000:]
    state = load_from_disk(str(run.checkpoint))['state_dict']
    start, inferencer = (torch.load(tmp_path / f'{name}.pth') for name in ('start', 'inferencer'))
    assert all(torch.equal(value, state[key]) for key, value in start.items() if key.startswith('backbone.'))
    assert all(torch.equal(value, state[key]) for key, value in inferencer.items())
    assert "classes: ['ellipse', 'rectangle', 'triangle', 'star', 'cross']" in done.stdout
    weights, = (tmp_path / 'out').glob('*.safetensors')
    measured = read_header(weights).published['metrics']['coco/bbox_mAP']
    tested, = (tmp_path / 'test').glob('*/*.json')
    assert json.loads(tested.read_text())['coco/bbox_mAP'] == measured
    assert len(list((tmp_path / 'pictures').iterdir())) == 3
    copies = list((tmp_path / 'second').rglob('*.safetensors'))
    assert len(copies) == 1 and copies[0].read_bytes() == weights.read_bytes()


def test_mmengines_loader_takes_the_file(run, tmp_path):
    weights = published(run, tmp_path)
    loaded = CheckpointLoader.load_checkpoint(str(weights), 'cpu')
    assert loaded['state_dict'].keys() == load_from_disk(str(run.checkpoint))['state_dict'].keys()
    assert loaded['meta']['dataset_meta']['classes'] and 'RetinaNet' in loaded['meta']['cfg']


@pytest.mark.parametrize('content, options, message', [
    (None, [], 'there is no such file|cannot be found'),
    ({'state_dict': {'backbone.x': torch.zeros(1)}}, [], 'it is not the checkpoint of a training by mmengine'),
    ('run', [], 'its licence is yours to say: --licence apache-2.0'),
])
def test_refusals(run, content, options, message, tmp_path):
    path = run.checkpoint if content == 'run' else tmp_path / 'file.pth'
    if isinstance(content, dict):
        torch.save(content, path)
    with pytest.raises(SystemExit, match=message) as caught:
        publish.main([str(path), '--out', str(tmp_path / 'out'), *options])
    assert '\n' not in str(caught.value) and not (tmp_path / 'out').exists()


def test_a_licence_that_binds():
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=dict(checkpoint='hf-hub:timm/convnext_tiny.dinov3_lvd1689m')))))
    assert licence_of(cfg, None) == 'dinov3-license'
    with pytest.raises(PublishError, match='--licence must be dinov3-license, not apache-2.0'):
        licence_of(cfg, 'apache-2.0')


def test_a_hub_that_takes_nothing(run, tmp_path, monkeypatch):
    with hub_server.running() as hub:
        hub_server.use(hub, tmp_path / 'home', monkeypatch)
        hub.read_only = True
        with pytest.raises(SystemExit, match='does not take me/tiny .*: log in by `hf auth login` with a token that'):
            published(run, tmp_path / 'out', '--push', 'me/tiny')

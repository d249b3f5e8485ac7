"""tools/benchmark.py, on small images: what it reports is measured, and wrong names are told apart."""
import json
import re

import pytest
import torch
from mmengine.config import Config

import tool
from cmt_backbones import CMT
from cmt_backbones.analysis import named_models
from cmt_backbones.analysis.plain_cmt import PlainCMT


def test_the_plain_form_computes_the_same():
    """Outputs on another grid and gradients, by the reading of the official blocks that we compare with."""
    torch.manual_seed(0)
    model = CMT('tiny', drop_path_rate=0.)
    plain = PlainCMT(model)
    x = torch.randn(2, 3, 96, 160)
    for ours, theirs in zip(model(x), plain(x)):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    for some in (model, plain):
        sum(out.square().mean() for out in some(x)).backward()
    for ours, theirs in [(model.stem.layers[0], plain.stem[0]),
                         (model.stages[0].blocks[0].lpu, plain.stages[0].blocks[0].lpu)]:
        assert (ours.weight.grad - theirs.weight.grad).norm() < 2e-5 * theirs.weight.grad.norm()
    ours, theirs = model.stages[1].relative_bias.table.grad, plain.stages[1].table.grad
    assert (ours - theirs).norm() < 2e-5 * theirs.norm()


def run(*options):
    tool.run('benchmark', *options, '--device', 'cpu', '--repeats', '2')


def test_inference(tmp_path, capsys):
    run('cmt-ti:plain', 'cmt-ti:deployed', 'resnet-50', '--shapes', '64x96', '--batch', '2',
        '--out', str(tmp_path / 'x'))
    result = json.loads((tmp_path / 'x.json').read_text())
    assert result['environment']['batch'] == 2 and 'huge_pages' not in result['environment']
    assert set(result['gflops']) == {'matrix product', '1x1 convolution'}
    for case in result['cases']:
        assert len(case['seconds']) == 2 and min(case['seconds']) > 0 and case['peak_gb'] >= 0
        assert case['images_per_second'] == pytest.approx(2 / case['median'])
    plain, ours, other = result['cases']
    assert 0 < ours['difference'] < 1e-5 and 'difference' not in other
    assert ours['gmacs'] == pytest.approx(plain['gmacs'], rel=.01)
    text = (tmp_path / 'x.md').read_text()
    assert text in capsys.readouterr().out
    assert text.startswith('`python tools/benchmark.py cmt-ti:plain cmt-ti:deployed ')
    assert text.count('| resnet-50 |') == 1 and (tmp_path / 'x.png').stat().st_size > 1000


def test_training_at_several_sizes(tmp_path, monkeypatch):
    monkeypatch.setenv('THP_MEM_ALLOC_ENABLE', '1')
    run('cmt-ti', 'cmt-ti:with-cp', '--shapes', '64x96', '96x64', '--train', '--no-memory',
        '--out', str(tmp_path / 'x'))
    result = json.loads((tmp_path / 'x.json').read_text())
    assert [(case['name'], case['shape']) for case in result['cases']] == [
        ('cmt-ti', [64, 96]), ('cmt-ti:with-cp', [64, 96]), ('cmt-ti', [96, 64]), ('cmt-ti:with-cp', [96, 64])]
    assert result['command'].startswith('THP_MEM_ALLOC_ENABLE=1 python tools/benchmark.py cmt-ti ')
    assert result['environment']['huge_pages'] == 'on'
    assert result['environment']['work'] == 'training step' and 'peak_gb' not in result['cases'][0]
    assert (tmp_path / 'x.png').stat().st_size > 1000


@pytest.mark.parametrize('config', ['mmdet/retinanet_cmt_ti_1x.py',
                                    'mmseg/upernet_cmt_ti_160k_ade20k.py'])
def test_training_of_whole_models(config, monkeypatch):
    def without_weights(path):
        cfg = from_file(path)
        cfg.model.backbone.init_cfg = None
        return cfg

    from_file = Config.fromfile
    monkeypatch.setattr(Config, 'fromfile', without_weights)
    model = named_models.build(str(tool.ROOT / 'configs' / config))
    x = named_models.images(config, 2, (64, 96), torch.device('cpu'), torch.float32)
    assert len(named_models.work(model, x, train=False)()) == 2
    assert named_models.work(model, x, train=True)() > 0
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize('models, message', [
    (['cmt-xl'], 'cmt-xl: no such model; there are cmt-ti, cmt-xs'),
    (['cmt-s:fast'], r"cmt-s:fast: unknown options \['fast'\]"),
    (['convnext-t:plain'], 'only CMT has a plain form'),
    (['resnet-50:deployed'], 'only our backbones have a deployed form'),
    (['cmt-s', '--shapes', '800'], "'800' is not HEIGHTxWIDTH"),
])
def test_wrong_names(models, message, capsys):
    with pytest.raises(SystemExit):
        run(*models, '--no-memory')
    assert re.search(message, capsys.readouterr().err)

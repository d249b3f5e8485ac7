"""tools/convert_checkpoint.py: every layout in, the same weights under our names out."""
import re

import pytest
import torch

import layouts
import tool
from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.weights import read_checkpoint


@pytest.fixture(scope='module')
def states():
    torch.manual_seed(0)
    return {'CMT': CMT('tiny').state_dict(), 'ConvNeXt': ConvNeXt('tiny').state_dict()}


FORMS = [('CMT', lambda s: {'model': layouts.official_cmt(s)}, "an official CMT classifier, CMT 'tiny'"),
         ('CMT', lambda s: {'state_dict': layouts.under('backbone.', s)}, "our CMT, CMT 'tiny'"),
         ('ConvNeXt', layouts.timm_convnext, "a ConvNeXt of timm, ConvNeXt 'tiny'"),
         ('ConvNeXt', lambda s: {'state_dict': layouts.under('module.backbone.', s)}, "Facebook's names")]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('family, form, told', FORMS, ids=range(len(FORMS)))
def test_any_layout_in_ours_out(states, family, form, told, suffix, tmp_path, capsys):
    torch.save(form(states[family]), tmp_path / 'in.pth')
    out = tmp_path / f'out{suffix}'
    tool.run('convert_checkpoint', tmp_path / 'in.pth', out)
    printed = capsys.readouterr().out
    assert told in printed and 'stages.3' in printed
    state = read_checkpoint(str(out))
    expected = states[family]
    if family == 'ConvNeXt' and 'timm' in told:  # a classifier, without output norms
        expected = {k: v for k, v in expected.items() if not k.startswith('norm')}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    init_cfg = dict(type='Pretrained', checkpoint=str(out))
    model = {'CMT': CMT, 'ConvNeXt': ConvNeXt}[family]('tiny', init_cfg=init_cfg)
    model.init_weights()
    assert all(torch.equal(model.state_dict()[k], expected[k]) for k in expected)


@pytest.mark.parametrize('arguments, message', [
    (['in.pth', 'out.bin'], 'OUT must end in .pth or .safetensors'),
    (['missing.pth', 'out.pth'], 'cannot convert missing.pth: there is no such file'),
    (['in.pth', 'out.pth', '--arch', 'huge'], "--arch must be one of .*not 'huge'"),
    (['in.pth', 'out.pth', '--arch', 'base'], 'wrong shape: .* try another arch'),
    (['odd.pth', 'out.pth'],
     r"our CMT, and fills none of \['base', 'small', 'tiny', 'xsmall'\]; --arch tells"),
    (['in.pth', 'out.pth', '--prefix', 'neck.'], "no known layout under the prefix 'neck.'"),
])
def test_errors_leave_no_file(states, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(states['CMT'], 'in.pth')
    torch.save({k: v for k, v in states['CMT'].items() if 'lpu' not in k}, 'odd.pth')
    with pytest.raises(SystemExit) as stop:
        tool.run('convert_checkpoint', *arguments)
    assert re.search(message, f'{stop.value}{capsys.readouterr().err}')
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(('in', 'odd'))] == []

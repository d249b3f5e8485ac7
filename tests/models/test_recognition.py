"""What `python -m cmt_backbones FILE` tells of files of every layout."""
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

import layouts
from cmt_backbones import CMT, ConvNeXt, __main__ as command
from cmt_backbones.models.recognition import describe
from tool import ROOT


def zeros(family, arch):
    """The state dict of an arch, which takes no memory that matters: each tensor is one number, expanded."""
    with torch.device('meta'):
        state = family(arch).state_dict()
    return {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}


def clip(state):
    return {k: v.contiguous() for k, v in state.items()}


CMT_HEAD = {'_fc.weight': torch.zeros(1280, 46, 1, 1), 'head.weight': torch.zeros(9, 1280)}
# name -> content, what is told
FILES = {
    'official CMT': (lambda: {'model': {**layouts.official_cmt(zeros(CMT, 'tiny')), **CMT_HEAD}}, {
        'layout': 'an official CMT classifier, within a classifier', 'fits': "type='CMT', arch='tiny'",
        'licence': 'not certain: its authors name MIT'}),
    'detector': (lambda: {'state_dict': {
        **layouts.under('backbone.', zeros(CMT, 'xsmall')), 'bbox_head.retina_cls.weight': torch.zeros(2)}}, {
        'layout': 'a checkpoint of our CMT, within a RetinaNet', 'fits': "arch='xsmall'",
        'configs': 'configs/mmdet/retinanet_cmt_xs_1x.py', 'licence': 'not in the file: ask who gave it'}),
    'facebook': (lambda: {'model': layouts.facebook_convnext(zeros(ConvNeXt, 'small'))}, {
        'layout': "a ConvNeXt under Facebook's names, which are ours, within a classifier",
        'fits': "type='ConvNeXt', arch='small'", 'licence': "Facebook's ConvNeXt classifiers are MIT"}),
    'DINOv3': (lambda: layouts.dinov3_convnext(zeros(ConvNeXt, 'tiny')), {
        'layout': "a ConvNeXt under Facebook's names, which are ours, the backbone alone", 'fits': "arch='tiny'",
        'licence': "by its form DINOv3's: DINOv3 License, which goes on to hold"}),
    'DINOv3 of timm.safetensors': (lambda: layouts.timm_dinov3_convnext(zeros(ConvNeXt, 'tiny')), {
        'layout': 'a ConvNeXt of timm, the backbone alone', 'fits': "arch='tiny'", 'licence': 'it may be DINOv3',
        'size': 'tensors, 27.82M numbers, float32', 'configs': 'retinanet_dinov3_convnext_t_frozen.py'}),
    'V2': (lambda: zeros(ConvNeXt, 'v2_atto'), {'fits': "arch='v2_atto'", 'licence': 'V2 weights are CC-BY-NC 4.0'}),
    'half.safetensors': (lambda: {k: v.half() for k, v in zeros(ConvNeXt, 'tiny').items()}, {
        'fits': "arch='tiny'", 'size': 'float16'}),
    'no arch of ours': (lambda: zeros(CMT, dict(
        stem_channels=16, embed_dims=(46, 92, 184, 368), depths=(2, 2, 9, 2), mlp_ratio=3.6, pretrain_img_size=160)), {
        'fits': r'no named arch of CMT: .* missing: stages.2.blocks.9.* \(depths there: \(2, 2, 9, 2\), here: '
                r'\(2, 2, 10, 2\)\)'}),
}


@pytest.mark.parametrize('name', FILES)
def test_what_a_file_is(name, tmp_path):
    make, expected = FILES[name]
    path = tmp_path / name
    save_file(clip(make()), path) if name.endswith('.safetensors') else torch.save(make(), path)
    told = dict(line.split(None, 1) for line in describe(str(path)).splitlines() if line[0] != ' ')
    configs = describe(str(path)).split('configs  ')[-1].split()
    assert {'file', 'layout', 'fits', 'size', 'licence'} <= told.keys()
    for key, text in expected.items():
        if key == 'configs':
            assert any(config.endswith(text) for config in configs)
            assert all((ROOT / config).is_file() for config in configs)
        else:
            assert re.search(text if '.*' in text else re.escape(text), told[key]), told[key]


def test_nothing_is_built_or_loaded(tmp_path, monkeypatch):
    """A safetensors file is told by its header: its numbers are not there."""
    path = tmp_path / 'whole.safetensors'
    save_file(clip(zeros(ConvNeXt, 'v2_atto')), path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], 'little')
    (tmp_path / 'header.safetensors').write_bytes(data[:header])
    assert describe(str(tmp_path / 'header.safetensors')).splitlines()[1:3] == describe(str(path)).splitlines()[1:3]


@pytest.mark.parametrize('arguments, message', [
    (['nowhere.pth'], 'nowhere.pth: there is no such file'), (['a', 'b'], r'usage: python -m cmt_backbones \[FILE\]'),
    ([__file__], 'the file is damaged, no checkpoint'), (['hf-hub:x'], "hf-hub:x: 'x' is no name on a hub")])
def test_refusals(arguments, message):
    with pytest.raises(SystemExit, match=message):
        command.main(arguments)


def test_the_command(tmp_path, capsys):
    torch.save(zeros(CMT, 'tiny'), tmp_path / 'w.pth')
    command.main([str(tmp_path / 'w.pth')])
    assert "fits     type='CMT', arch='tiny'\n" in capsys.readouterr().out
    assert sys.modules['cmt_backbones.models.recognition']

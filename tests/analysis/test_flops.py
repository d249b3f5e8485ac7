"""Counted multiply-adds against those of the papers and of facts that were counted by hand."""
import json

import pytest
import torch

import tool
from cmt_backbones import CMT
from cmt_backbones.analysis.flops import count

# config, shape, params in millions, GMACs with and without attention's products, and whose number it is
KNOWN = [
    ('mmdet/retinanet_cmt_s_1x', (800, 1280), 34.55, 302.2, 229.5),  # CMT, table 6: 231 without
    ('mmdet/retinanet_cmt_ti_1x', (800, 1280), 17.57, 209.2, 175.3),
    ('mmdet/mask_rcnn_cmt_s_1x', (800, 1280), 44.47, 320.8, 248.1),  # CMT, table 7: 249 without, 44.5 M
    ('mmdet/mask_rcnn_convnext_t_ms_3x', (800, 1280), 48, 262, 262),  # ConvNeXt, table 3
    ('mmdet/cascade_mask_rcnn_convnext_t_ms_3x', (800, 1280), 86, 741, 741),  # ConvNeXt, table 3
    ('mmdet/cascade_mask_rcnn_convnext_b_ms_3x', (800, 1280), 146, 964, 964),  # ConvNeXt, table 3
    ('mmseg/upernet_convnext_t_160k_ade20k', (512, 2048), 60, 939, 939),  # ConvNeXt, table 4
]


@pytest.mark.parametrize('config, shape, params, gmacs, without', KNOWN, ids=[k[0] for k in KNOWN])
def test_counts_are_the_published_ones(config, shape, params, gmacs, without, capsys):
    tool.run('get_flops', tool.ROOT / 'configs' / f'{config}.py', '--json', '--shape', *shape)
    result = json.loads(capsys.readouterr().out)
    assert result['params_m'] == pytest.approx(params, rel=5e-3)
    assert result['gmacs'] == pytest.approx(gmacs, rel=2e-3)
    assert result['gmacs_without_attention_matmuls'] == pytest.approx(without, rel=2e-3)
    assert (result['gmacs_of_widened_heads'] > 0) == ('cmt' in config)


@pytest.mark.parametrize('arch, size, gmacs', [('tiny', 160, .6258), ('xsmall', 192, 1.5264),
                                               ('small', 224, 3.9983),
                                               ('base', 256, 9.2660)])
def test_backbones_at_their_native_size(arch, size, gmacs):
    with torch.device('meta'):
        model = CMT(arch).eval()
    result = count(model, (size, size))
    assert result['gmacs'] == pytest.approx(gmacs, abs=1e-4) and result['gmacs_of_widened_heads'] == 0


def test_impossible_shape(capsys):
    with pytest.raises(SystemExit):
        tool.run('get_flops', 'x.py', '--shape', '16')
    assert '--shape takes a height and a width of at least 32, not [16]' in capsys.readouterr().err

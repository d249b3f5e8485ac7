"""What mim and mmengine read of the configs: model-index.yml and the metafiles that it names."""
import ast
from collections import Counter

import pytest
from mmengine.fileio import load

import cmt_backbones  # noqa: F401  (registers the backbones)
from cmt_backbones.analysis.flops import count, model_without_memory
from cmt_backbones.openmmlab import config_from_file
from tool import ROOT

FILES = [load(ROOT / name) for name in load(ROOT / 'model-index.yml')['Import']]
ENTRIES = [entry for file in FILES for entry in file['Models']]
COLLECTIONS = {collection['Name'] for file in FILES for collection in file.get('Collections', [])}


def docstring(entry):
    return ' '.join(ast.get_docstring(ast.parse((ROOT / entry['Config']).read_text())).split())


def test_every_config_is_there_once():
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('mm*/*.py')
               if not path.stem.endswith('_shapes')}  # but for the demos
    assert Counter(entry['Config'] for entry in ENTRIES) == Counter(configs)
    assert COLLECTIONS == {'CMT', 'ConvNeXt'}


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['Name'])
def test_an_entry_is_about_its_config(entry):
    name, data = entry['Name'], entry['Metadata']
    assert f'/{name}.py' in entry['Config'] and entry['In Collection'].lower() in name
    assert 'Weights' not in entry  # there are none to download
    assert data.get('Epochs') == (12 if name.endswith(('_1x', '_frozen')) else 36 if '_3x' in name else None)
    assert data.get('Iterations') == (160_000 if '_160k' in name else 40_000 if '_40k' in name else None)
    assert data['Training Data'] == ('ADE20K' if 'ade20k' in name else 'COCO')


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['Name'])
def test_metrics_are_marked_as_those_of_others(entry):
    said = docstring(entry)
    if 'Results' not in entry:
        assert 'No published result' in said and 'Metrics From' not in entry['Metadata']
        return
    source = entry['Metadata']['Metrics From']
    if "DINOv3's model card" in said:
        assert source == 'the model card of github.com/facebookresearch/dinov3'
    else:
        assert 'the README of github.com/facebookresearch' in source if "Facebook's README" in said else (
            source.startswith('the paper, table ') and f'{source[-7:]}):' in said)
    for metrics in (result['Metrics'] for result in entry['Results']):
        for name, value in metrics.items():
            assert f"{value} {name.replace('(ms+flip)', '').replace('mIoU', '')}".strip() in said


@pytest.mark.parametrize('name, shape', [
    ('retinanet_cmt_s_1x', (800, 1280)), ('mask_rcnn_cmt_ti_ms_3x', (800, 1280)),
    ('cascade_mask_rcnn_convnext_t_ms_3x', (800, 1280)), ('upernet_cmt_xs_160k_ade20k', (512, 2048)),
    ('upernet_convnext_b_in22k_160k_ade20k_640', (640, 2560)),
    ('retinanet_dinov3_convnext_t_frozen', (800, 1280)), ('linear_dinov3_convnext_t_40k_ade20k', (512, 2048))])
def test_numbers_are_those_of_the_config(name, shape):
    entry, = (entry for entry in ENTRIES if entry['Name'] == name)
    cfg, data = config_from_file(ROOT / entry['Config']), entry['Metadata']
    assert data['Batch Size'] == 8 * cfg.train_dataloader.batch_size
    assert data.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert data.get('Iterations') == cfg.train_cfg.get('max_iters')
    assert set(data['Training Techniques']) == {cfg.optim_wrapper.optimizer.type} | (
        {'Mixed Precision Training'} if cfg.optim_wrapper.type == 'AmpOptimWrapper' else set()) | (
        {'Layer-wise Learning Rate Decay'} if 'constructor' in cfg.optim_wrapper else set()) | (
        {'Frozen Backbone'} if cfg.model.backbone.get('frozen_stages') == 4 else set())

    found = count(model_without_memory(cfg), shape)
    assert round(found['params_m'] * 1e6) == data['Parameters']
    assert round(found['gmacs'], 1) == data['FLOPs'] / 1e9

"""Every published layout through `init_cfg` alone, and every bad file refused."""
import argparse
import builtins
import functools
import os
import pickle

import pytest
import torch
from mmengine.dist import all_gather_object
from safetensors.torch import save_file

import golden_numbers
import layouts
import processes
from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.weights import fit, load_pretrained, read_checkpoint, resize_table

GOLDEN = {'CMT': 'cmt_ti_160', 'ConvNeXt': 'convnext_tiny'}


@functools.lru_cache
def golden_state(family):
    """Our tiny backbone filled by the golden formula, under our names."""
    seed = int(golden_numbers.load(GOLDEN[family])['seed'])
    if family == 'ConvNeXt':
        return golden_numbers.formula_state(ConvNeXt('tiny').state_dict(), seed)
    from cmt_backbones.weights.layouts import from_official_cmt
    official = layouts.official_cmt(CMT('tiny').state_dict())
    return from_official_cmt(golden_numbers.formula_state(official, seed))


def training_checkpoint(weights):
    """What the official training scripts save."""
    return {'model': weights, 'optimizer': {'state': {}, 'param_groups': [{'lr': 5e-4}]}, 'epoch': 299,
            'model_ema': {k: torch.full_like(v, 7) for k, v in weights.items()},
            'args': argparse.Namespace(model='cmt_ti', lr=5e-4)}


def mmengine_checkpoint(weights):
    return {'state_dict': weights, 'meta': {'epoch': 12, 'cfg': 'model = ...'}, 'message_hub': {}}


# name -> (family, what is saved, whether the file has the output norms)
CONVNEXT_FORMS = {
    'facebook classifier': lambda s: {'model': layouts.facebook_convnext(s)},
    'facebook detector': lambda s: {'state_dict': layouts.under('backbone.', s)},
    'facebook detector, DDP': lambda s: {'state_dict': layouts.under('module.backbone.', s)},
    'our segmentor': lambda s: mmengine_checkpoint(layouts.under('backbone.', s)),
    'plain': lambda s: s,
    'timm': layouts.timm_convnext,
    'timm safetensors': layouts.timm_convnext,
    'timm features': layouts.timm_features,
    'mmpretrain': lambda s: {'state_dict': layouts.mmpretrain_convnext(s)},
    'DINOv3 of Meta': layouts.dinov3_convnext,
    'DINOv3 of timm': layouts.timm_dinov3_convnext,
    'DINOv3 of timm, safetensors': layouts.timm_dinov3_convnext,
}
CMT_FORMS = {
    'official': lambda s: training_checkpoint(official_classifier(s)),
    'official, plain': lambda s: official_classifier(s),
    'plain': lambda s: s,
    'plain safetensors': lambda s: s,
    'our detector': lambda s: mmengine_checkpoint(layouts.under('backbone.', s)),
    'teacher and student': lambda s: {'state_dict': {
        **layouts.under('teacher.backbone.', s),
        **{f'student.backbone.{k}': v + 1 for k, v in s.items()}}},
}
FORMS = [('CMT', form) for form in CMT_FORMS] + [('ConvNeXt', form) for form in CONVNEXT_FORMS]


def official_classifier(state):
    return {**layouts.official_cmt(state), '_fc.weight': torch.zeros(1280, 368, 1, 1),
            '_fc.bias': torch.zeros(1280), '_bn.weight': torch.ones(1280),
            'head.weight': torch.zeros(9, 1280)}


def write(folder, family, form):
    content = {'CMT': CMT_FORMS, 'ConvNeXt': CONVNEXT_FORMS}[family][form](golden_state(family))
    path = str(folder / ('weights.safetensors' if 'safetensors' in form else 'weights.pth'))
    if path.endswith('.safetensors'):
        save_file({k: v.contiguous() for k, v in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def init_cfg(form, path):
    prefix = dict(prefix='teacher.backbone.') if form.startswith('teacher') else {}
    return dict(type='Pretrained', checkpoint=path, **prefix)


def detector(family, cfg):
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    channels = [46, 92, 184, 368] if family == 'CMT' else [96, 192, 384, 768]
    return MODELS.build(dict(
        type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type=family, arch='tiny', drop_path_rate=0., init_cfg=cfg),
        neck=dict(type='FPN', in_channels=channels, out_channels=8, num_outs=5),
        bbox_head=dict(
            type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8,
            anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                                  ratios=[1.0], strides=[4, 8, 16, 32, 64]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'))))


def segmentor(family, cfg):
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    channels = 368 if family == 'CMT' else 768
    return MODELS.build(dict(
        type='EncoderDecoder', backbone=dict(type=family, arch='tiny', drop_path_rate=0., init_cfg=cfg),
        decode_head=dict(type='FCNHead', in_channels=channels, in_index=3, channels=8, num_classes=3),
        test_cfg=dict(mode='whole')))


def golden_error(backbone, has_norms):
    """The largest relative error of the four maps."""
    family = type(backbone).__name__
    golden = golden_numbers.load(GOLDEN[family])
    backbone.eval()
    with torch.no_grad():
        outs = backbone(golden_numbers.images(golden))
    state = golden_state(family)
    if family == 'ConvNeXt' and not has_norms:  # the file leaves them at 1 and 0
        outs = [out * state[f'norm{i}.weight'][:, None, None] + state[f'norm{i}.bias'][:, None, None]
                for i, out in enumerate(outs)]
    return max(golden_numbers.error(golden, f'eval/{i}', out) for i, out in enumerate(outs))


def has_norms(form):
    return form.startswith(('facebook detector', 'our', 'plain'))


@pytest.mark.parametrize('family, form', FORMS, ids=lambda x: x)
def test_every_layout_in_a_detector_and_a_segmentor(family, form, tmp_path):
    cfg = init_cfg(form, write(tmp_path, family, form))
    for build in (detector, segmentor):
        model = build(family, cfg)
        model.init_weights()
        assert golden_error(model.backbone, has_norms(form)) < 1e-5


def load_in_process(rank, jobs):
    for family, form, path in jobs:
        model = detector(family, init_cfg(form, path))
        model.init_weights()
        wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        errors = all_gather_object(golden_error(wrapped.module.backbone, has_norms(form)))
        assert max(errors) < 1e-5, (form, errors)


def test_every_layout_in_two_processes(tmp_path, free_port):
    jobs = []
    for i, (family, form) in enumerate(FORMS):
        (tmp_path / str(i)).mkdir()
        jobs.append((family, form, write(tmp_path / str(i), family, form)))
    processes.in_two(load_in_process, free_port, jobs)


@pytest.mark.parametrize('name, arch', [('convnext_tiny', 'tiny'), ('convnextv2_atto', 'v2_atto')])
def test_what_timm_saves_gives_timms_features(name, arch, tmp_path):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    for p in theirs.parameters():  # response normalisation starts at zero, layer scale near it
        torch.nn.init.normal_(p, std=.1) if p.dim() == 1 else None
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = ConvNeXt(arch, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth')))
    ours.init_weights()
    ours.eval()
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        features = theirs.forward_intermediates(x, intermediates_only=True)
        for i, (out, feature) in enumerate(zip(ours(x), features)):
            expected = getattr(ours, f'norm{i}')(feature)
            assert (out - expected).norm() / expected.norm() < 1e-5


def test_bias_tables_of_another_resolution_are_resized(tmp_path):
    torch.save(CMT(dict(SMALL, pretrain_img_size=96)).state_dict(), tmp_path / 'w.pth')
    model = CMT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth')))
    model.init_weights()
    big = read_checkpoint(str(tmp_path / 'w.pth'))['stages.1.relative_bias.table']
    assert big.shape == (2, 12 * 12, 9)
    interpolate = functools.partial(torch.nn.functional.interpolate, mode='bicubic')
    rows = interpolate(big.reshape(2, 12, 12, 9).permute(0, 3, 1, 2), size=(8, 8))
    both = interpolate(rows.reshape(2, 3, 3, 64).permute(0, 3, 1, 2), size=(2, 2))
    expected = both.reshape(2, 64, 4)
    assert torch.allclose(model.stages[1].relative_bias.table, expected, atol=1e-5)
    with torch.no_grad():  # a table and its resize stand for the same bias on a third grid
        assert resize_table(big, big.shape) is big


def test_part_of_a_backbone_from_a_whole_one(tmp_path):
    torch.save(golden_state('CMT'), tmp_path / 'w.pth')
    model = CMT('tiny', out_indices=(0, 1))
    load_pretrained(model, str(tmp_path / 'w.pth'))
    assert all(torch.equal(v, golden_state('CMT')[k]) for k, v in model.state_dict().items())


# ------------------------------------------------------------------ refusals

SMALL = dict(stem_channels=4, embed_dims=(4, 8, 16, 32), depths=(1, 1, 2, 1), mlp_ratio=2,
             pretrain_img_size=64)
TINY_CONVNEXT = dict(embed_dims=(4, 8, 16, 32), depths=(1, 1, 2, 1), use_grn=False)


def small_state(**changes):
    return CMT(dict(SMALL, **changes)).state_dict()


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


def without_counters(state):
    """As PyTorch before 0.4.1 saved."""
    return {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}


class Code:
    """Pickles as a call that leaves a trace."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def saved(content, **kwargs):
    return lambda path: torch.save(content() if callable(content) else content, path, **kwargs)


def raw(data):
    return lambda path: path.write_bytes(data)


def truncated(path):
    torch.save(small_state(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def truncated_safetensors(path):
    save_file(small_state(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def wrong_shape():
    return {**small_state(), 'stages.2.norm.weight': torch.zeros(5)}


BAD = {
    'no such file': (lambda path: None, 'there is no such file'),
    'a folder': (lambda path: path.mkdir(), 'no such file, it is a folder'),
    'empty': (raw(b''), 'the file is empty; fetch it again'),
    'a web page': (raw(b'\n<!DOCTYPE html><html>404</html>'), 'a web page, not a checkpoint'),
    'an LFS pointer': (raw(b'version https://git-lfs.github.com/spec/v1\noid sha256:0'),
                       'run `git lfs pull`'),
    'garbage': (raw(os.urandom(5000)), 'the file is damaged, no checkpoint of PyTorch, or holds code'),
    'text': (raw(b'lr: 0.001\n'), 'the file is damaged, no checkpoint'),
    'truncated': (truncated, 'the file is damaged'),
    'truncated.safetensors': (truncated_safetensors, 'damaged or no safetensors file'),
    'garbage.safetensors': (raw(os.urandom(5000)), 'damaged or no safetensors file'),
    'a list': (saved([torch.zeros(3)]), 'holds a list, not a dict of tensors'),
    'no tensors': (saved({'model': {'epoch': 3}}), r"no tensors; its keys are \['epoch'\]"),
    'a ResNet': (saved({'conv1.weight': torch.zeros(3), 'layer1.0.bn1.weight': torch.zeros(3)}),
                 r'no known layout among its 2 tensors \(conv1.weight, layer1.0.bn1.weight'),
    'a ConvNeXt': (saved(lambda: ConvNeXt(TINY_CONVNEXT).state_dict()),
                   r"looks like a ConvNeXt under Facebook's names.*"
                   r"the backbone is a CMT; use type='ConvNeXt'"),
    'wider': (saved(lambda: small_state(embed_dims=(8, 16, 32, 64))),
              r'our CMT; \d+ of \d+ weights fit; wrong shape: .* try another arch'),
    'deeper': (saved(lambda: small_state(depths=(1, 1, 3, 1))),
               r'no place here for: stages.2.blocks.2.* '
               r'\(depths there: \(1, 1, 3, 1\), here: \(1, 1, 2, 1\)\)'),
    'shallower': (saved(lambda: small_state(depths=(1, 1, 1, 1))),
                  r'; (\d+) of (?!\1)\d+ weights fit; missing: stages.2.blocks.1.*'
                  r'\(depths there: \(1, 1, 1, 1\), here: \(1, 1, 2, 1\)\)'),
    'shallower, without counters': (saved(lambda: without_counters(small_state(depths=(1, 1, 1, 1)))),
                                    r'\(depths there: \(1, 1, 1, 1\), here: \(1, 1, 2, 1\)\)'),
    'of another width, without counters': (
        saved(lambda: without_counters(small_state(embed_dims=(8, 16, 32, 64)))),
        'our CMT; 22 of 212 weights fit; wrong shape'),
    'one missing': (saved(lambda: without(small_state(), 'stages.1.norm.bias')),
                    r'(\d+) of \d+ weights fit; missing: stages.1.norm.bias; try'),
    'one of wrong shape': (saved(wrong_shape),
                           r'wrong shape: stages.2.norm.weight is \(5,\) there and \(16,\) here; try'),
    'official with one missing': (saved(lambda: {'model': without(
        layouts.official_cmt(small_state()), 'blocks_a.0.attn.v.weight')}),
        r'an official CMT classifier; .* missing: stages.0.blocks.0.attn.kv.weight'),
    'two backbones': (saved(lambda: {f'{who}.backbone.{k}': v for who in ('student', 'teacher')
                                     for k, v in small_state().items()}),
                      r"more than one backbone; choose one by prefix= in init_cfg, of "
                      r"\['student.backbone.', 'teacher.backbone.'\]"),
    'a table of no square grid': (saved(lambda: {**small_state(), 'stages.0.relative_bias.table':
                                                 torch.zeros(1, 250, 4)}), r'is \(1, 250, 4\) there'),
    'a call into the system': (saved({'model': Code(os.system, 'touch FIRED')}),
                               r"no tensors; its keys are \['model'\]"),
    'a plain pickle': (lambda path: path.write_bytes(pickle.dumps({'a': Code(os.system, 'touch FIRED')})),
                       'the file is damaged, no checkpoint of PyTorch, or holds code'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = BAD[name]
    path = tmp_path / (name if name.endswith('.safetensors') else f'{name}.pth')
    make(path)
    model = CMT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        model.init_weights()
    assert str(caught.value).startswith(f'cannot load {str(path)!r} into CMT: ')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # nothing by halves
    assert not (tmp_path / 'FIRED').exists()


def test_convnext_of_other_depth_is_refused():
    wanted = ConvNeXt(TINY_CONVNEXT).state_dict()
    deeper = ConvNeXt(dict(TINY_CONVNEXT, depths=(1, 1, 4, 1))).state_dict()
    with pytest.raises(ValueError,
                       match=r'no place here for: stages.2.2.*\(1, 1, 4, 1\), here: \(1, 1, 2, 1\)'):
        from cmt_backbones.weights import LAYOUTS
        fit(deeper, wanted, LAYOUTS[2])


def test_pretrained_stands_alone(tmp_path):
    torch.save(small_state(), tmp_path / 'w.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth'))
    model = CMT(SMALL, init_cfg=[cfg])
    model.init_weights()
    assert torch.equal(model.stages[0].norm.weight, small_state()['stages.0.norm.weight'])
    with pytest.raises(ValueError, match='stands alone; got 2'):
        CMT(SMALL, init_cfg=[dict(type='Constant', layer='Linear', val=1), cfg]).init_weights()
    model = CMT(SMALL, init_cfg=dict(type='Constant', layer='Linear', val=3))
    model.init_weights()
    assert (model.stages[0].blocks[0].attn.q.weight == 3).all()


def test_an_unknown_prefix(tmp_path):
    torch.save(layouts.under('backbone.', small_state()), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match="no known layout under the prefix 'neck.'"):
        load_pretrained(CMT(SMALL), str(tmp_path / 'w.pth'), prefix='neck.')


@pytest.mark.parametrize('function, args', [
    (builtins.exec, ("open('FIRED', 'w')", )), (builtins.open, ('FIRED', 'w')), (os.mkdir, ('FIRED', )),
    (pickle.loads, (pickle.dumps(Code(os.mkdir, 'FIRED')), )), (eval, ("open('FIRED', 'w')", ))], ids=str)
@pytest.mark.parametrize('legacy', [False, True])
def test_code_beside_the_weights_never_runs(function, args, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {'model': small_state(), 'args': Code(function, *args)}
    torch.save(content, 'w.pth', _use_new_zipfile_serialization=not legacy)
    model = CMT(SMALL)
    try:
        load_pretrained(model, 'w.pth')
        assert torch.equal(model.stages[0].norm.weight, content['model']['stages.0.norm.weight'])
    except ValueError as error:
        assert 'holds code' in str(error)
    assert not (tmp_path / 'FIRED').exists()

"""The classifiers: official logits, what timm checks of its own models, and their weights elsewhere."""
import json
import shutil

import pytest
import timm
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from test_cmt import SMALL
from timm.models import FeatureInfo
from timm.models._manipulate import adapt_input_conv
from timm.optim import create_optimizer_v2

import golden_numbers
from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.classifier import CMTClassifier, arch_of
from cmt_backbones.models.cmt import ARCHS
from cmt_backbones.models.scaling import scaled_arch
from cmt_backbones.weights import resize_table
from layouts import official_cmt
from tool import ROOT

NAMES = ['cmt_tiny', 'cmt_xsmall', 'cmt_small', 'cmt_base']


def small(**kwargs):
    torch.manual_seed(0)
    return CMTClassifier(**{'arch': SMALL, 'num_classes': 5, **kwargs})


def different(state):
    """Weights and running averages that no initialisation gives."""
    generator = torch.Generator().manual_seed(1)
    return {k: v if v.dtype == torch.long else v + 0.1 * torch.rand(v.shape, generator=generator)
            for k, v in state.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------------------- the official numbers


@pytest.mark.parametrize('arch, modes', [
    ('tiny', ['eval', 'train']), ('xsmall', ['eval']), ('small', ['eval']), ('base', ['eval'])])
def test_logits_are_the_official_ones(arch, modes, tmp_path):
    golden = golden_numbers.load('cmt_logits')
    model = timm.create_model(f'cmt_{arch}', drop_rate=0.)
    assert sum(p.numel() for p in model.parameters()) == golden[f'{arch}/n_params']
    state = golden_numbers.formula_state(official_cmt(model.state_dict()), int(golden['seed']))
    torch.save(dict(model=state, epoch=299), tmp_path / 'official.pth')
    model.load_pretrained(str(tmp_path / 'official.pth'), new_head=False)
    x = golden_numbers.images(dict(golden, size=ARCHS[arch]['pretrain_img_size']))
    with torch.no_grad():
        for mode in modes:
            logits = model.train(mode == 'train')(x)
            assert golden_numbers.error(golden, f'{arch}/{mode}', logits) < 1e-5, mode


# ---------------------------------------------------------------------------- timm's checks of its models


@pytest.mark.parametrize('name', NAMES)
def test_timm_forward_backward_and_checkpointing(name):
    model = timm.create_model(name, num_classes=42, img_size=64, drop_rate=0.)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model.eval()(x)
    assert logits.shape == (2, 42) and logits.isfinite().all()

    outs, grads = [], []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.train().zero_grad()
        outs.append(model(x))
        outs[-1].square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        grads.append([p.grad.clone() for p in model.parameters()])
    assert torch.equal(*outs)
    for a, b in zip(*grads):
        # Offsets before a BatchNorm have no gradient but rounding, which differs between what is kept and what is not.
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-7


@pytest.mark.parametrize('name', NAMES)
def test_timm_default_cfg_and_reset(name):
    model = timm.create_model(name).eval()
    cfg, state = model.default_cfg, model.state_dict()
    assert cfg['first_conv'] + '.weight' in state and cfg['classifier'] + '.weight' in state
    assert cfg['num_classes'] == model.num_classes == 1000 and model.get_classifier() is model.head.fc
    side = cfg['input_size'][-1]
    assert side == model.arch['pretrain_img_size'] and cfg['pool_size'] == (side // 32, side // 32)

    x, narrow = torch.randn(1, 3, 64, 96), (model.num_features, model.head_hidden_size)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (1, narrow[0], 2, 3)
        assert torch.equal(model(x), model.forward_head(features))
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        assert pooled.shape == (1, narrow[1]) and torch.equal(model(x), pooled)
        model.reset_classifier(0, '')
        assert model(x).shape == (1, narrow[1], 2, 3)
        model.reset_classifier(7, 'avg')
        assert model(x).shape == (1, 7) and model.num_classes == 7
        bare = timm.create_model(name, num_classes=0, global_pool='', img_size=64).eval()
        assert bare(x).shape == (1, narrow[1], 2, 3)


@pytest.mark.parametrize('name', NAMES)
def test_timm_features(name):
    model = timm.create_model(name, img_size=64).eval()
    x = torch.randn(1, 3, 64, 96)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    assert info.channels() == list(model.embed_dims) and info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x)) and torch.equal(last, maps[-1])
        assert len(model.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
    state = model.state_dict()
    for indices in [(0, 1, 2, 3), (1, 2), (-1, )]:
        backbone = timm.create_model(name, img_size=64, features_only=True, out_indices=indices).eval()
        backbone.model.load_state_dict({k: state[k] for k in backbone.model.state_dict()})
        with torch.no_grad():
            outs = backbone(x)
        kept = [range(4)[i] for i in indices]
        assert len(backbone.model.stages) == kept[-1] + 1
        assert [o.shape[1] for o in outs] == backbone.feature_info.channels()
        assert [96 // o.shape[3] for o in outs] == backbone.feature_info.reduction()
        assert all(torch.equal(out, maps[i]) for out, i in zip(outs, kept))


def test_features_train_without_unused_parameters():
    model = timm.create_model('cmt_tiny', img_size=64, features_only=True, out_indices=(1, 2))
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('layer_decay', [None, 0.5])
def test_timm_parameter_groups(layer_decay):
    model = small()
    optimizer = create_optimizer_v2(model, 'adamw', lr=1., weight_decay=0.05, layer_decay=layer_decay)
    names = {id(p): name for name, p in model.named_parameters()}
    scale, decay = {}, {}
    for group in optimizer.param_groups:
        for p in group['params']:
            scale[names[id(p)]], decay[names[id(p)]] = group.get('lr_scale', 1.), group['weight_decay']
    assert scale.keys() == set(names.values())
    assert all((decay[name] > 0) == (p.dim() > 1) for name, p in model.named_parameters())
    chain = ['stem.layers.0.weight', 'stages.0.blocks.0.attn.q.weight', 'stages.2.blocks.0.lpu.weight',
             'stages.2.blocks.1.lpu.weight', 'stages.3.blocks.0.norm1.weight', 'head.fc.weight']
    scales = [scale[name] for name in chain]
    assert scales[-1] == 1 and scale['head.conv.weight'] == scale['head.norm.bias'] == 1
    for with_the_first_block in ('patch_aggregation.weight', 'norm.bias', 'relative_bias.table'):
        assert scale[f'stages.2.{with_the_first_block}'] == scale['stages.2.blocks.0.lpu.weight']
    if layer_decay:
        assert all(a < b for a, b in zip(scales, scales[1:]))
    else:
        assert set(scales) == {1}


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize('in_chans', [1, 5])
def test_other_channels(in_chans, tmp_path):
    three, other = small(), small(in_chans=in_chans)
    assert other(torch.randn(2, in_chans, 64, 64)).shape == (2, 5)
    with pytest.raises(ValueError, match=rf'\(N, {in_chans}, H, W\), got \(2, 3, 64, 64\)'):
        other(torch.randn(2, 3, 64, 64))
    torch.save(three.state_dict(), tmp_path / 'three.pth')
    other.load_pretrained(str(tmp_path / 'three.pth'))
    if in_chans == 1:  # a grey image as it is in three channels
        grey = torch.randn(2, 1, 64, 64)
        with torch.no_grad():
            assert torch.allclose(other.eval()(grey), three.eval()(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_deployed_form_gives_the_same_logits():
    model, x = small().eval(), torch.randn(2, 3, 96, 64)
    model.load_state_dict(different(model.state_dict()))
    with torch.no_grad():
        expected = model(x)
        assert (model.switch_to_deploy()(x) - expected).norm() < 1e-5 * expected.norm()
    assert isinstance(model.head.norm, torch.nn.Identity)


@pytest.mark.parametrize('arch', [*ARCHS.values(), SMALL, scaled_arch(-4), scaled_arch(0.5)], ids=str)
def test_the_arch_is_read_off_the_weights(arch):
    with torch.device('meta'):
        state = CMT(arch).state_dict()
        found = arch_of(state)
        rebuilt = CMT(found).state_dict()
    assert {k: v.shape for k, v in rebuilt.items()} == {k: v.shape for k, v in state.items()}
    assert {**found, 'mlp_ratio': 0} == {**arch, 'mlp_ratio': 0}


@pytest.mark.parametrize('kwargs, message', [
    (dict(img_size=(64, 96)), r'side of the square.*not \(64, 96\)'),
    (dict(img_size=100), 'multiple of 32, not 100'),
    (dict(global_pool='median'), "global_pool must be one of \\('avg', 'max', .* not 'median'"),
    (dict(global_pool=''), "global_pool='' leaves a map.*must be 0 then, not 5"),
    (dict(arch='huge'), 'arch must be one of'),
])
def test_impossible_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


# ---------------------------------------------------------------------------- weights


def test_an_official_file_through_timm(tmp_path):
    source = timm.create_model('cmt_tiny', img_size=64)
    source.load_state_dict(different(source.state_dict()))
    torch.save(dict(model=official_cmt(source.state_dict())), tmp_path / 'official.pth')
    overlay = dict(file=str(tmp_path / 'official.pth'), custom_load=True)

    def load(**kwargs):
        return timm.create_model('cmt_tiny', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    assert same(load(img_size=64).state_dict(), source.state_dict())

    tuned, table = load(num_classes=7, img_size=96).state_dict(), 'stages.0.relative_bias.table'
    assert tuned['head.fc.weight'].shape == (7, 1280)
    assert torch.equal(tuned['head.conv.weight'], source.state_dict()['head.conv.weight'])
    assert tuned[table].shape == (1, 24 * 24, 9) and source.state_dict()[table].shape == (1, 16 * 16, 4)
    at_96, resized = torch.randn(1, 3, 96, 96), load(img_size=96)
    with torch.no_grad():  # resized as it loads, or at every forward: the same
        assert torch.allclose(source.eval()(at_96), resized.eval()(at_96), atol=1e-4)


@pytest.fixture(scope='module', params=['ours', 'official'])
def file_of_timm(request, tmp_path_factory):
    """A file of a classifier of 5 classes whose tables are for 64x64, and its weights under our names."""
    torch.manual_seed(0)
    state = different(timm.create_model('cmt_tiny', img_size=64, num_classes=5).state_dict())
    path = tmp_path_factory.mktemp('timm') / 'file.pth'
    torch.save(state if request.param == 'ours' else dict(model=official_cmt(state)), path)
    return str(path), state


WAYS = {  # how timm is told of a file, from its path and its content
    'file': lambda path: dict(pretrained=True, pretrained_cfg_overlay=dict(file=path)),
    'state_dict': lambda path: dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict=torch.load(path))),
    'checkpoint_path': lambda path: dict(checkpoint_path=path),
}


@pytest.mark.parametrize('way', WAYS)
def test_timms_ways_fill_the_classifier(way, file_of_timm):
    path, state = file_of_timm
    assert same(timm.create_model('cmt_tiny', num_classes=5, img_size=64, **WAYS[way](path)).state_dict(), state)
    larger = timm.create_model('cmt_tiny', num_classes=5, img_size=96, **WAYS[way](path))
    wanted = {k: resize_table(v, larger.state_dict()[k].shape) if 'relative_bias' in k else v
              for k, v in state.items()}
    assert same(larger.state_dict(), wanted) and wanted['stages.0.relative_bias.table'].shape == (1, 576, 9)


def test_timms_adaptations_of_a_file(file_of_timm):
    path, state = file_of_timm
    options = dict(img_size=64, **WAYS['file'](path))
    other = timm.create_model('cmt_tiny', num_classes=7, in_chans=4, **options).state_dict()
    changed = {k for k, v in state.items() if other[k].shape != v.shape or not torch.equal(other[k], v)}
    assert changed == {'stem.layers.0.weight', 'head.fc.weight', 'head.fc.bias'}
    assert torch.equal(other['stem.layers.0.weight'],
                       adapt_input_conv(4, state['stem.layers.0.weight']))
    features = timm.create_model('cmt_tiny', features_only=True, out_indices=(1, 2), **options).model.state_dict()
    assert features and all(torch.equal(v, state[k]) for k, v in features.items())
    pooled = timm.create_model('cmt_tiny', num_classes=5, global_pool='catavgmax', **options)
    assert torch.equal(pooled.state_dict()['head.conv.weight'], state['head.conv.weight'])
    assert pooled.head.fc.weight.shape == (5, 2560)


def test_a_local_folder_of_timm(file_of_timm, tmp_path):
    path, state = file_of_timm
    (tmp_path / 'config.json').write_text(json.dumps(dict(
        architecture='cmt_tiny', num_classes=5, pretrained_cfg=dict(num_classes=5, input_size=[3, 64, 64]))))
    shutil.copy(path, tmp_path / 'pytorch_model.bin')
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, img_size=64)
    assert same(model.state_dict(), state)


@pytest.mark.parametrize('options, error, message', [
    (dict(pretrained=True, pretrained_cfg_overlay=dict(file='resnet.pth')), ValueError, 'no known layout among its 1'),
    (dict(pretrained=True, pretrained_cfg_overlay=dict(file='none.pth')), OSError, 'there is no such file'),
    (dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict={'conv1.weight': torch.zeros(3)})), ValueError,
     "cannot load timm's weights into the classifier: no known layout"),
    (dict(features_only=True, checkpoint_path='small.pth'), ValueError,
     r'timm loads a checkpoint_path into the wrapper of features_only.*use pretrained=True'),
    (dict(num_classes=7, checkpoint_path='small.pth'), RuntimeError, 'size mismatch for head.fc.weight'),
])
def test_timms_ways_refuse_in_a_line(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'conv1.weight': torch.zeros(3)}, 'resnet.pth')
    torch.save(small().state_dict(), 'small.pth')
    with pytest.raises(error, match=message):
        timm.create_model('cmt_tiny', **{'arch': SMALL, 'num_classes': 5, **options})


@pytest.mark.parametrize('pool, width', [('max', 1), ('avgmax', 1), ('catavgmax', 2)])
def test_other_pooling(pool, width):
    model = small(global_pool=pool)
    x = torch.randn(2, 3, 64, 64)
    assert model.head_hidden_size == width * 1280 and model(x).shape == (2, 5)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, width * 1280)


def test_heads_that_do_not_fit(tmp_path):
    def file(state):
        torch.save(state, tmp_path / 'file.pth')
        return str(tmp_path / 'file.pth')
    model, state = small(), different(small().state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    backbone = {k: v for k, v in state.items() if not k.startswith('head.')}
    others = {**state, 'head.fc.weight': torch.zeros(9, 1280), 'head.fc.bias': torch.zeros(9)}
    half = {k: v for k, v in state.items() if k != 'head.norm.bias'}
    for broken, message in [
            (backbone, 'missing: head.conv.weight and 7 more'),
            (others, r'wrong shape: head.fc.weight is \(9, 1280\) there and \(5, 1280\) here'),
            (half, 'missing: head.norm.bias'), (ConvNeXt('tiny').state_dict(), 'it looks like a ConvNeXt')]:
        with pytest.raises(ValueError, match=message):
            model.load_pretrained(file(broken), new_head=False)
        assert same(model.state_dict(), before)

    model.load_pretrained(file(others))
    fc = {'head.fc.weight', 'head.fc.bias'}
    assert same(model.state_dict(), {**state, **{k: before[k] for k in fc}})
    model.load_state_dict(before)
    model.load_pretrained(file({'backbone.' + k: v for k, v in backbone.items()}))  # a detector's
    assert same(model.state_dict(), {**before, **backbone})
    with pytest.raises(ValueError, match='missing: head.norm.bias'):  # a new head is whole or not at all
        model.load_pretrained(file(half))


def test_a_detector_starts_from_a_classifier(tmp_path):
    classifier = timm.create_model('cmt_tiny', num_classes=5, img_size=64)
    state = different(classifier.state_dict())
    torch.save(dict(state_dict=state, epoch=3, classes=['a', 'b']), tmp_path / 'best.pth')
    cfg = Config.fromfile(ROOT / 'configs/mmdet/retinanet_cmt_ti_shapes.py')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'best.pth'))
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    loaded = detector.backbone.state_dict()
    assert loaded and all(torch.equal(v, state[k]) for k, v in loaded.items() if 'relative_bias' not in k)
    model = CMTClassifier('tiny', 5).eval()  # the tables were resized from 64 to the native 160
    model.load_pretrained(str(tmp_path / 'best.pth'), new_head=False)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.items())

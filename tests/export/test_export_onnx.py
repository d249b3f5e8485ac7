"""Exported files against the models, by onnxruntime and torch.export themselves."""
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import small_models
import tool
from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.export import ExportError, load, segmentors, verify
from cmt_backbones.openmmlab.inference import build_model, predict, read_config


def settle(model):
    """Gives BatchNorms running averages, as training does: folding must show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=.2)
            nn.init.uniform_(module.running_var, .5, 2)
    return model.eval()


@pytest.fixture
def checkpoint(request, tmp_path):
    """A config and a checkpoint of a small segmentor."""
    path = small_models.segmentor(tmp_path, request.param)
    torch.manual_seed(0)
    model = settle(build_model(read_config(path)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    return path, str(tmp_path / 'weights.pth'), model


def run(path, image):
    return onnxruntime.InferenceSession(path).run(None, {'images': image.numpy()})


def check(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        a, b = np.asarray(a), b.numpy()
        assert a.shape == b.shape and np.abs(a - b).max() < 1e-4 * np.abs(b).max()


@pytest.mark.parametrize('checkpoint', ['ConvNeXt'], indirect=True)
@torch.no_grad()
def test_a_backbone_of_any_size(checkpoint, tmp_path, capsys):
    config, weights, model = checkpoint
    out = str(tmp_path / 'backbone.onnx')
    tool.run('export_onnx', config, weights, '--out', out, '--backbone-only', '--dynamic', '--shape', '96', '160')
    assert f'{out} by onnxruntime at 128x256: differs' in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob('*.onnx*')] == ['backbone.onnx']  # weights included
    for height, width in [(64, 64), (96, 160), (224, 128)]:
        image = torch.randn(1, 3, height, width)
        check(run(out, image), model.backbone(image))


@pytest.mark.parametrize('checkpoint', ['ConvNeXt'], indirect=True)
@torch.no_grad()
def test_a_segmentor_of_any_size(checkpoint, tmp_path):
    """On ConvNeXt: test_detectors.py has CMT at any size."""
    config, weights, model = checkpoint
    out = str(tmp_path / 'segmentor.onnx')
    tool.run('export_onnx', config, weights, '--out', out, '--dynamic', '--logits', '--shape', '64', '96')
    for height, width in [(64, 96), (64, 64), (160, 128)]:
        image = torch.randn(1, 3, height, width)
        meta = [dict(img_shape=(height, width))]
        wanted = model.encode_decode(image, meta)
        assert wanted.shape == (1, 6, height, width)
        check(run(out, image), [wanted])


@pytest.mark.parametrize('checkpoint', ['CMT'], indirect=True)
@torch.no_grad()
def test_one_size_as_it_was_trained(checkpoint, tmp_path, capsys):
    """Classes at a size that 32 does not divide, without folding."""
    config, weights, model = checkpoint
    out = str(tmp_path / 'segmentor.onnx')
    tool.run('export_onnx', config, weights, '--out', out, '--no-deploy', '--shape', '70', '45')
    assert 'classes are those of the model' in capsys.readouterr().out
    image = torch.randn(1, 3, 70, 45)
    logits = model.encode_decode(image, [dict(img_shape=(70, 45))])
    labels, = run(out, image)
    assert labels.dtype == np.int64 and (labels == logits.argmax(1).numpy()).mean() > .999
    # A photo of this size is looked at as it is.
    photo = np.random.default_rng(0).integers(0, 256, (70, 45, 3), np.uint8)
    predictor = load(out)
    predictor.info['resize'] = None
    mean, std = (torch.tensor(predictor.info[name]) for name in ('mean', 'std'))
    image = ((torch.from_numpy(photo) - mean) / std).permute(2, 0, 1)[None]
    logits = model.encode_decode(image, [dict(img_shape=(70, 45))])
    assert (predictor(photo).labels == logits[0].argmax(0).numpy()).mean() > .999


@torch.no_grad()
def test_a_linear_layer_on_the_last_map(tmp_path):
    """As the configs of DINOv3's linear layers have it."""
    small_models.segmentor(tmp_path, 'ConvNeXt')
    config, out = tmp_path / 'linear.py', str(tmp_path / 'linear.onnx')
    head = dict(_delete_=True, type='FCNHead', in_channels=64, channels=64, in_index=3, num_convs=0,
                concat_input=False, num_classes=6, align_corners=False)
    config.write_text(f"_base_ = './ConvNeXt.py'\nmodel = dict(decode_head={head}, auxiliary_head=None)\n")
    torch.manual_seed(0)
    model = build_model(read_config(config))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    tool.run('export_onnx', config, tmp_path / 'weights.pth', '--out', out, '--logits', '--shape', '64', '96')
    image = torch.randn(1, 3, 64, 96)
    check(run(out, image), [model.encode_decode(image, [dict(img_shape=(64, 96))])])


@pytest.mark.parametrize('checkpoint', ['ConvNeXt'], indirect=True)
def test_windows_over_a_larger_photo(checkpoint, tmp_path):
    """As the ADE20K configs test: logits of windows, averaged, in the size of the photo."""
    config, weights, _ = checkpoint
    options = ['model.test_cfg.mode=slide', 'model.test_cfg.crop_size=(64,64)', 'model.test_cfg.stride=(40,40)']
    out = str(tmp_path / 'windows.onnx')
    tool.run('export_onnx', config, weights, '--out', out, '--logits', '--cfg-options', *options)
    predictor = load(out)
    assert predictor.info['windows'] == dict(size=[64, 64], stride=[40, 40])
    predictor.info['resize'] = dict(scale=[160, 100], keep_ratio=True)
    cfg = read_config(config)
    cfg.merge_from_dict(dict(model=dict(test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(40, 40)))))
    cfg.test_dataloader.dataset.pipeline[1].scale = (160, 100)
    model = build_model(cfg, weights)
    photo = drawn_scenes.scene(np.random.default_rng(0), 150, 200)[0]
    wanted = predict(model, photo).pred_sem_seg.data[0].numpy()
    found = predictor(np.ascontiguousarray(photo[..., ::-1])).labels
    assert found.shape == (150, 200) and (found == wanted).mean() > .999
    predictor.info['output'] = 'labels'
    with pytest.raises(ExportError, match='export it with --logits for larger images'):
        predictor(photo)


@pytest.mark.parametrize('checkpoint', ['CMT'], indirect=True)
@torch.no_grad()
def test_the_program_of_torch_export(checkpoint, tmp_path):
    config, weights, model = checkpoint
    out = str(tmp_path / 'backbone.pt2')
    tool.run('export_onnx', config, weights, '--out', out, '--backbone-only', '--dynamic', '--shape', '96', '160')
    program = torch.export.load(out).module()
    for height, width in [(64, 64), (96, 160), (64, 256)]:
        image = torch.randn(1, 3, height, width)
        check(program(image), model.backbone(image))


@torch.no_grad()
def test_torch_export_without_the_command():
    """As others may call it: several images, other outputs, and nothing folded."""
    model = settle(ConvNeXt(small_models.ARCHS['ConvNeXt'], out_indices=(1, 3)))
    sides = {2: 32 * torch.export.Dim('rows', min=2), 3: 32 * torch.export.Dim('columns', min=2)}
    program = torch.export.export(model, (torch.randn(2, 3, 96, 160), ), dynamic_shapes=(sides, )).module()
    for height, width in [(64, 64), (128, 96)]:
        image = torch.randn(2, 3, height, width)
        check(program(image), model(image))


@pytest.mark.parametrize('side, out', [(1, 3), (5, 3), (7, 7), (12, 6), (16, 5)])
def test_adaptive_pooling_as_a_product(side, out):
    x = torch.randn(2, 3, side, 11)
    ours, pytorchs = segmentors.AdaptiveAvgPool((out, 2)), nn.AdaptiveAvgPool2d((out, 2))
    assert torch.allclose(ours(x), pytorchs(x), atol=1e-6)


def test_what_cannot_be_exported_is_refused_with_a_reason(tmp_path, capsys):
    segmentor = small_models.segmentor(tmp_path, 'ConvNeXt')
    detector = str(tool.ROOT / 'configs/mmdet/retinanet_cmt_ti_shapes.py')

    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            tool.run('export_onnx', *arguments)
        return f'{error.value} {capsys.readouterr().err}'

    out = ['--out', tmp_path / 'x.onnx']
    assert 'add --backbone-only' in refusal(detector, '--out', tmp_path / 'x.pt2')
    psp = tmp_path / 'psp.py'
    psp.write_text("_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'\n")
    assert 'the decode_head is a PSPHead, which is not supported: UPerHead and FCNHead are' in refusal(psp, *out)
    assert '--out must end in .onnx or .pt2' in refusal(segmentor, '--out', 'x.pth')
    assert 'multiples of 32' in refusal(segmentor, *out, '--dynamic', '--shape', 70, 64)
    assert 'cannot read the config' in refusal(tmp_path / 'nowhere.py', *out)
    assert 'cannot read the checkpoint' in refusal(segmentor, tmp_path / 'nowhere.pth', *out)
    torch.save(dict(state_dict=CMT(small_models.ARCHS['CMT']).state_dict()), tmp_path / 'other.pth')
    assert 'has no weights of a whole model' in refusal(segmentor, tmp_path / 'other.pth', *out)
    assert not (tmp_path / 'x.onnx').exists()


def test_a_file_that_differs_is_told():
    model = nn.Conv2d(3, 4, 1)

    def wanted(x):
        return (model(x), )

    for found, least, most in [(wanted, 0, 0), (lambda x: (1.01 * model(x), ), .009, .011),
                               (lambda x: (model(x)[:, :2], ), np.inf, np.inf)]:
        assert least <= verify.difference(found, wanted, (32, 32)) <= most

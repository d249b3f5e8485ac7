"""Exported files against the models, by onnxruntime and torch.export themselves."""
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import small_models
import tool
from cmt_backbones import CMT, ConvNeXt

sys.modules.setdefault('trained_model', tool.load('trained_model'))
export_onnx = tool.load('export_onnx')


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
    model = settle(export_onnx.build_model(export_onnx.read_config(path)))
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
    export_onnx.main([config, weights, '--out', out, '--backbone-only', '--dynamic', '--shape', '96', '160'])
    assert f'{out} at 128x256: differs' in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob('*.onnx*')] == ['backbone.onnx']  # weights included
    for height, width in [(64, 64), (96, 160), (224, 128)]:
        image = torch.randn(1, 3, height, width)
        check(run(out, image), model.backbone(image))


@pytest.mark.parametrize('checkpoint', ['CMT'], indirect=True)
@torch.no_grad()
def test_a_segmentor_of_any_size(checkpoint, tmp_path):
    config, weights, model = checkpoint
    out = str(tmp_path / 'segmentor.onnx')
    export_onnx.main([config, weights, '--out', out, '--dynamic', '--shape', '64', '96'])
    for height, width in [(64, 96), (64, 64), (160, 128)]:  # the second is the native size
        image = torch.randn(1, 3, height, width)
        meta = [dict(img_shape=(height, width))]
        wanted = model.encode_decode(image, meta)
        assert wanted.shape == (1, 6, height, width)
        check(run(out, image), [wanted])


@pytest.mark.parametrize('checkpoint', ['CMT'], indirect=True)
@torch.no_grad()
def test_one_size_as_it_was_trained(checkpoint, tmp_path):
    """A size that 32 does not divide, without folding."""
    config, weights, model = checkpoint
    out = str(tmp_path / 'segmentor.onnx')
    export_onnx.main([config, weights, '--out', out, '--no-deploy', '--shape', '70', '45'])
    image = torch.randn(1, 3, 70, 45)
    check(run(out, image), [model.encode_decode(image, [dict(img_shape=(70, 45))])])


@pytest.mark.parametrize('checkpoint', ['CMT'], indirect=True)
@torch.no_grad()
def test_the_program_of_torch_export(checkpoint, tmp_path):
    config, weights, model = checkpoint
    out = str(tmp_path / 'backbone.pt2')
    export_onnx.main([config, weights, '--out', out, '--backbone-only', '--dynamic', '--shape', '96', '160'])
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
    ours, pytorchs = export_onnx.AdaptiveAvgPool((out, 2)), nn.AdaptiveAvgPool2d((out, 2))
    assert torch.allclose(ours(x), pytorchs(x), atol=1e-6)


def test_what_cannot_be_exported_is_refused_with_a_reason(tmp_path, capsys):
    segmentor = small_models.segmentor(tmp_path, 'ConvNeXt')
    detector = str(tool.ROOT / 'configs/mmdet/retinanet_cmt_ti_shapes.py')

    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            export_onnx.main([*map(str, arguments)])
        return f'{error.value} {capsys.readouterr().err}'

    out = ['--out', tmp_path / 'x.onnx']
    assert 'a whole detector is a matter for mmdeploy' in refusal(detector, *out)
    assert '--out must end in .onnx or .pt2' in refusal(segmentor, '--out', 'x.pth')
    assert 'multiples of 32' in refusal(segmentor, *out, '--dynamic', '--shape', 70, 64)
    assert 'cannot read the config' in refusal(tmp_path / 'nowhere.py', *out)
    assert 'cannot read the checkpoint' in refusal(segmentor, tmp_path / 'nowhere.pth', *out)
    torch.save(dict(state_dict=CMT(small_models.ARCHS['CMT']).state_dict()), tmp_path / 'other.pth')
    assert 'is not of this config' in refusal(segmentor, tmp_path / 'other.pth', *out)
    assert not (tmp_path / 'x.onnx').exists()


def test_a_file_that_differs_is_told():
    model = nn.Conv2d(3, 4, 1)

    def wanted(x):
        return (model(x), )

    for found, least, most in [(wanted, 0, 0), (lambda x: (1.01 * model(x), ), .009, .011),
                               (lambda x: (model(x)[:, :2], ), np.inf, np.inf)]:
        assert least <= export_onnx.difference(found, wanted, (32, 32)) <= most

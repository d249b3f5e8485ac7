"""Operators by torchvision: against what compiled mmcv answers (tests/golden/operators.npz), what its CUDA kernels do
where it has no others (cuda_kernels.npz), and formulas. mmcv's own functions call ours in all tests here, whatever this
mmcv has."""
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv import ops
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

import cuda_kernels
import operator_cases
import tool
from cmt_backbones import load_model
from cmt_backbones.openmmlab import ModelError, operators
from cmt_backbones.openmmlab.operators import extension, focal_loss


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    operator_cases.take_ours(monkeypatch)


def test_they_answer_as_cuda_kernels():
    golden = operator_cases.load(cuda_kernels.GOLDEN)
    found = operator_cases.answers_with_gradients(cuda_kernels.cases())
    assert list(found) == list(golden)
    for name, value in golden.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6 * max(1, np.abs(value).max(initial=0)),
                                   err_msg=name)


def test_they_answer_as_compiled_ones():
    golden, found = operator_cases.load(), operator_cases.answers()
    assert list(found) == list(golden)
    for name, value in golden.items():
        if 'float16' not in name:
            # Indices, boxes and scores are the same; sums differ by the order in which they are made.
            tolerance = 0 if 'nms' in name and 'gaussian' not in name else 1e-6
            tolerance *= max(1, np.abs(value).max(initial=0))
            np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_in_float16_they_are_nearer_to_the_truth_than_compiled_ones():
    golden, found, exact = operator_cases.load(), operator_cases.answers(), operator_cases.answers(exact=True)
    names = [name for name in golden if 'float16' in name]
    assert {name.split(',')[0] for name in names} == {'roi_align', 'deform_conv2d', 'modulated_deform_conv2d'}
    for name in names:
        error, of_compiled = (np.abs(x[name] - exact[name]).max() for x in (found, golden))
        assert error <= max(of_compiled, 1e-3 * np.abs(exact[name]).max()), name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_rounded_once(dtype):
    torch.manual_seed(0)
    maps = torch.randn(1, 3, 12, 12).to(dtype)
    regions = torch.tensor([[0., 8, 8, 80, 64], [0, 5, 3, 90, 90], [0, 40, 40, 40, 40]]).to(dtype)
    weight, offset = torch.randn(4, 3, 3, 3).to(dtype), torch.randn(1, 18, 10, 10).to(dtype)
    mask, bias = torch.rand(1, 9, 10, 10).to(dtype), torch.randn(4).to(dtype)
    for operator, rois, inputs in (
            (lambda x, rois: ops.roi_align(x, rois, 7, 1 / 8), [regions], [maps]),
            (lambda x, rois: ops.roi_pool(x, rois, 7, 1 / 8), [regions], [maps]),
            (ops.deform_conv2d, [], [maps, offset, weight]),
            (ops.modulated_deform_conv2d, [], [maps, offset, mask, weight, bias])):
        answers = []
        for cast in (lambda x: x.clone(), lambda x: x.float()):
            given = [cast(x).requires_grad_() for x in inputs]
            output = operator(*given, *map(cast, rois))
            after = torch.linspace(-1, 1, output.numel()).view(output.shape).to(dtype)
            answers.append([output, *torch.autograd.grad(output, given, cast(after))])
        for narrow, wide in zip(*answers):
            assert narrow.dtype == dtype and torch.equal(narrow, wide.to(dtype)) and narrow.any()
    boxes, scores = operator_cases.boxes(np.random.RandomState(0), 50).to(dtype), torch.rand(50).to(dtype)
    assert torch.equal(ops.nms(boxes, scores, .5)[1], ops.nms(boxes.float(), scores.float(), .5)[1])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_comes_of_nothing(dtype):
    """No regions, no images, no rows: shapes are kept, gradients are zeros of their inputs' types."""
    maps, none = torch.randn(1, 3, 12, 12).to(dtype).requires_grad_(), torch.zeros(0, 5, dtype=dtype)
    for pooled in (ops.roi_align(maps, none, 7, 1 / 8), ops.roi_pool(maps, none, 7, 1 / 8)):
        grad, = torch.autograd.grad(pooled.sum(), maps)
        assert pooled.shape == (0, 3, 7, 7) and pooled.dtype == grad.dtype == dtype and not grad.any()
    boxes, found = ops.nms(none[:, :4], none[:, 0], .5)
    assert boxes.shape == (0, 5) and found.shape == (0,)
    for loss in (ops.sigmoid_focal_loss, ops.softmax_focal_loss):
        logits = torch.zeros(0, 7, dtype=dtype, requires_grad=True)
        each = loss(logits, torch.zeros(0, dtype=torch.long), 2., .25, None, 'none')
        grad, = torch.autograd.grad(loss(logits, torch.zeros(0, dtype=torch.long), 2., .25, None, 'sum'), logits)
        assert each.numel() == 0 and each.dtype == grad.dtype == dtype and grad.shape == (0, 7)


def focal_inputs(dtype):
    torch.manual_seed(0)
    logits = torch.randn(40, 7, dtype=dtype) * 4
    logits[0], logits[1] = 30, -30
    target = torch.arange(40) % 9 - 1  # -1 and 7 are background
    return logits.requires_grad_(), target


@pytest.mark.parametrize('at_once', [1, 50, 2**22])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2., .25), (0., .5), (1.5, .9)])
def test_sigmoid_focal_loss(gamma, alpha, at_once, monkeypatch):
    monkeypatch.setattr(focal_loss, '_AT_ONCE', at_once)
    logits, target = focal_inputs(torch.float64)
    one_hot = F.one_hot(torch.where(target < 0, 7, target), 8)[:, :7]
    weight = torch.rand(7, dtype=torch.float64) + .5
    row_weight = torch.cat([weight, torch.ones(1)])[torch.where(target < 0, 7, target)][:, None]
    for class_weight, factors in ((None, 1.), (weight, row_weight)):
        expected = factors * py_sigmoid_focal_loss(logits, one_hot, gamma=gamma, alpha=alpha, reduction='none')
        loss = ops.sigmoid_focal_loss(logits, target, gamma, alpha, class_weight, 'none')
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        grads = [torch.autograd.grad(x.mean(), logits)[0] for x in (loss, expected)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('focal_loss', [ops.sigmoid_focal_loss, ops.softmax_focal_loss], ids=['sigmoid', 'softmax'])
def test_focal_losses_in_fewer_bits(focal_loss, dtype):
    logits, target = focal_inputs(dtype)
    target = target.clamp(max=6)  # of softmax's targets 7 is none
    wide = logits.detach().double().requires_grad_()
    precision = torch.finfo(dtype).eps
    for kind in ('none', 'mean'):
        loss, expected = (focal_loss(x, target, 2., .25, None, kind) for x in (logits, wide))
        torch.testing.assert_close(loss.double(), expected, rtol=4 * precision, atol=4 * precision)
    grads = [torch.autograd.grad(focal_loss(x, target, 2., .25, None, 'sum'), x)[0].double() for x in (logits, wide)]
    torch.testing.assert_close(*grads, rtol=4 * precision, atol=4 * precision)


def test_focal_loss_keeps_its_inputs_alone():
    logits, target = focal_inputs(torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ops.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    assert [x.data_ptr() for x in kept if x.numel()] == [logits.data_ptr(), target.data_ptr()]


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [2., 1.])
def test_softmax_focal_loss(gamma, weighted):
    logits, target = focal_inputs(torch.float64)
    target = torch.where(target == 7, -1, target)
    weight = torch.rand(7, dtype=torch.float64) if weighted else None
    p = logits.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    expected = -.25 * (1 - p) ** gamma * p.log() * (target >= 0)
    expected = expected * weight[target.clamp(min=0)] if weighted else expected
    loss = ops.softmax_focal_loss(logits, target, gamma, .25, weight, 'none')
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad(x.sum(), logits)[0] for x in (
        ops.softmax_focal_loss(logits, target, gamma, .25, weight, 'sum'), expected)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


def test_roi_pool_takes_the_maximum_of_each_bin():
    torch.manual_seed(0)
    maps = torch.randn(2, 2, 9, 11, requires_grad=True)
    rois = torch.tensor([[0, 3., 5, 60, 50], [1, 0, 0, 87, 71], [0, -40, 30, 20, 200], [1, 8, 8, 8, 8],
                         [0, 300, 300, 400, 400], [1, 40, 40, 20, 20]])
    expected = torch.zeros(len(rois), 2, 3, 2)
    for n, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = corners[0] / 8, corners[1] / 8, (corners[2] + 1) / 8, (corners[3] + 1) / 8
        for i in range(3 if x2 > x1 and y2 > y1 else 0):
            rows = slice(*(min(max(edge, 0), 9) for edge in (
                int(np.floor(y1 + i * (y2 - y1) / 3)), int(np.ceil(y1 + (i + 1) * (y2 - y1) / 3)))))
            for j in range(2):
                columns = slice(*(min(max(edge, 0), 11) for edge in (
                    int(np.floor(x1 + j * (x2 - x1) / 2)), int(np.ceil(x1 + (j + 1) * (x2 - x1) / 2)))))
                inside = maps[int(image), :, rows, columns].flatten(1)
                expected[n, :, i, j] = inside.max(1).values if inside.numel() else 0
    pooled = ops.roi_pool(maps, rois, (3, 2), 1 / 8)
    assert torch.equal(pooled, expected) and pooled.any()
    grads = [torch.autograd.grad(operator_cases.loss_of(x), maps)[0] for x in (pooled, expected)]
    torch.testing.assert_close(*grads)
    assert ops.roi_pool(maps, rois[:0], 3).shape == (0, 2, 3, 3)


def test_masked_conv_computes_at_its_places():
    torch.manual_seed(0)
    conv = ops.MaskedConv2d(3, 5, (3, 1), padding=(1, 0))
    x, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) > .6
    torch.testing.assert_close(conv(x, mask), F.conv2d(x, conv.weight, conv.bias, padding=(1, 0)) * mask[:, None])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_deformable_attention(dtype):
    """The form for GPUs, which mmcv's layer never calls on a CPU, against the one for CPUs."""
    attention = sys.modules['mmcv.ops.multi_scale_deform_attn']
    torch.manual_seed(0)
    shapes = torch.tensor([[6, 4], [3, 2]])
    value, locations, weights = (x.to(dtype).requires_grad_() for x in (
        torch.randn(2, 30, 3, 8), torch.rand(2, 5, 3, 2, 4, 2) * 1.2 - .1, torch.rand(2, 5, 3, 2, 4)))
    output = attention.MultiScaleDeformableAttnFunction.apply(
        value, shapes, torch.tensor([0, 24]), locations, weights, 64)
    wide = [x.detach().float().requires_grad_() for x in (value, locations, weights)]
    expected = attention.multi_scale_deformable_attn_pytorch(wide[0], shapes, *wide[1:])
    assert output.dtype == dtype
    precision = dict(rtol=8 * torch.finfo(dtype).eps, atol=32 * torch.finfo(dtype).eps)
    torch.testing.assert_close(output.float(), expected, **precision)
    grads = torch.autograd.grad(operator_cases.loss_of(output), (value, locations, weights))
    for grad, other in zip(grads, torch.autograd.grad(operator_cases.loss_of(expected), wide)):
        torch.testing.assert_close(grad.float(), other, rtol=precision['rtol'],
                                   atol=precision['atol'] * float(other.abs().max()))


def test_what_is_not_there_names_both_ways_out():
    with pytest.raises(NotImplementedError, match=r"'box_iou_rotated'.*OPERATORS=compiled.*take a head"):
        ops.box_iou_rotated(torch.rand(2, 5), torch.rand(2, 5))
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*take 'avg'.*OPERATORS=compiled"):
        ops.roi_align(torch.rand(1, 1, 4, 4), torch.tensor([[0., 0, 0, 2, 2]]), 2, 1., 0, 'max')
    for number in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match='region with NaN or infinity'):
            ops.roi_align(torch.rand(1, 1, 4, 4), torch.tensor([[0., 0, 0, number, 2]]), 2)
    with pytest.raises(ValueError, match='region whose x2'):
        ops.roi_align(torch.rand(1, 1, 4, 4), torch.tensor([[0., 2, 0, 1, 2]]), 2)


def test_every_operator_that_mmcv_asks_for_is_there_or_missing_by_name():
    for module in operator_cases.MODULES:
        assert module.ext_module is extension
    assert all(callable(vars(extension)[name]) for name in extension.__all__)
    assert not hasattr(extension, '__path__')


@pytest.mark.parametrize('source', ['mmcv was built', 'this torchvision is'])
def test_a_gpu_that_the_operators_cannot_use_ends_a_command_at_once(source, monkeypatch, tmp_path):
    of_mmcv = SimpleNamespace(__file__='_ext.so') if source == 'mmcv was built' else extension
    monkeypatch.setitem(sys.modules, 'mmcv._ext', of_mmcv)
    monkeypatch.setattr(of_mmcv, 'get_compiling_cuda_version', lambda: 'not available', raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    told = f'{source} without CUDA operators.*`make setup OPERATORS=torchvision`.*`make setup OPERATORS=compiled`'
    config = tool.ROOT / 'configs/mmdet/retinanet_cmt_ti_shapes.py'
    with pytest.raises(SystemExit, match=told) as ended:
        tool.run('train', config, '--no-check', '--work-dir', tmp_path)
    assert '\n' not in str(ended.value)
    with pytest.raises(ModelError, match=told):
        load_model(config)
    operators.check_device('cpu')
    monkeypatch.setattr(of_mmcv, 'get_compiling_cuda_version', lambda: '13.0')
    operators.check_device('cuda:1')


@pytest.fixture
def bare_mmcv(tmp_path):
    """A copy of mmcv without compiled operators, found before the installed one."""
    shutil.copytree(Path(mmcv.__file__).parent, tmp_path / 'mmcv',
                    ignore=shutil.ignore_patterns('_ext*', '__pycache__', 'csrc'))
    return tmp_path


def answer(folder, code):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), str(tool.ROOT)]), OMP_NUM_THREADS='1')
    return subprocess.run([sys.executable, '-c', code], env=env, cwd=folder, text=True, capture_output=True)


# The import provides them; once more adds nothing.
ASK = ('import sys; before = list(sys.meta_path); from cmt_backbones.openmmlab.operators import compiled, provide;'
       'provide(); ours = [f for f in sys.meta_path if f not in before and "operators" in type(f).__module__];'
       'assert len(ours) == 1 and ours[0] is sys.meta_path[-1]; print(compiled())')


def test_an_mmcv_without_operators_gets_ours_and_no_other(bare_mmcv):
    assert 'No module named' in answer(bare_mmcv, 'import mmcv.ops').stderr
    found = answer(bare_mmcv, f'{ASK}; import mmdet.models, mmcv.ops; print(mmcv.ops.get_compiler_version())')
    assert found.returncode == 0, found.stderr
    assert found.stdout.split('\n')[0] == 'False' and 'torchvision' in found.stdout

    (bare_mmcv / 'mmcv' / '_ext.py').write_text('')  # stands for compiled ones
    assert answer(bare_mmcv, ASK).stdout.strip() == 'True'


def test_operators_of_another_torch_are_not_hidden(bare_mmcv):
    (bare_mmcv / 'mmcv' / f'_ext{sysconfig.get_config_var("EXT_SUFFIX")}').write_bytes(b'no library')
    found = answer(bare_mmcv, ASK)
    assert found.returncode and 'ImportError' in found.stderr and '_ext' in found.stderr

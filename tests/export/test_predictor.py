"""What runs exported files: its arithmetic against mmdet's, OpenCV's and PyTorch's, and where nothing else is."""
import importlib.metadata as metadata
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv import imrescale
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from packaging.requirements import Requirement
from PIL import Image

import cmt_backbones
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.export import ExportError, load, predictor

PACKAGE = Path(cmt_backbones.__file__).parent


def test_masks_are_pasted_as_mmdet_does():
    rng = np.random.default_rng(0)
    masks = rng.random((20, 28, 28), np.float32)
    corners = rng.uniform(-5, 70, (20, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    wanted, _ = _do_paste_mask(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), 64, 48, skip_empty=False)
    for mask, box, other in zip(masks, boxes, wanted.numpy()):
        whole = np.zeros((64, 48), np.float32)
        rows, columns, part = predictor.paste(mask, box, whole.shape)
        whole[rows, columns] = part
        assert np.abs(whole - other).max() < 2e-5


def test_suppression_is_torchvisions():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (300, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    scores, labels = np.sort(rng.random(300, np.float32))[::-1].copy(), rng.integers(0, 3, 300)
    wanted = torchvision.ops.batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), .5).numpy()
    found = predictor.suppress(boxes, labels, .5)
    assert np.array_equal(found, wanted) and 20 < len(found) < 280


@pytest.mark.parametrize('size', [(30, 50), (64, 20), (97, 131)])
def test_images_are_resized_as_opencv_does(size):
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    wanted = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    found = predictor.bilinear(image.astype(np.float32), *size)
    assert np.abs(found - wanted).max() <= 1
    tensor = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    tensor = F.interpolate(tensor, size=size, mode='bilinear', align_corners=False)[0].permute(1, 2, 0)
    assert np.abs(found - tensor.numpy()).max() < 1e-3


@pytest.mark.parametrize('height, width', [(480, 640), (640, 480), (333, 1000), (100, 101)])
def test_sizes_are_those_of_mmcv(height, width):
    found = object.__new__(predictor.Predictor)
    found.info = dict(resize=dict(scale=[1333, 800], keep_ratio=True), dynamic=True)
    assert found.resized(height, width) == imrescale(np.zeros((height, width), np.uint8), (1333, 800)).shape
    found.info.update(dynamic=False, size=[300, 400])
    height, width = found.resized(height, width)
    assert height <= 300 and width <= 400 and (height == 300 or width == 400)


@pytest.mark.parametrize('length, window, stride, wanted', [
    (512, 512, 341, [0]), (513, 512, 341, [0, 1]), (1000, 512, 341, [0, 341, 488]), (100, 512, 341, [0])])
def test_windows(length, window, stride, wanted):
    assert predictor.starts(length, window, stride) == wanted


def test_what_is_no_file_of_ours_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r'there is no file .*nowhere.onnx'):
        load(tmp_path / 'nowhere.onnx')
    (tmp_path / 'text.onnx').write_text('none')
    with pytest.raises(ExportError, match='is no ONNX file that onnxruntime can run'):
        load(tmp_path / 'text.onnx')
    value = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node('Neg', ['x'], ['y'])], 'other', [value], [out])
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid('', 18)]),
              tmp_path / 'other.onnx')
    with pytest.raises(ExportError, match='has no metadata of cmt_backbones'):
        load(tmp_path / 'other.onnx')
    with pytest.raises(ExportError, match='onnxruntime, openvino, not .tensorrt'):
        load(tmp_path / 'other.onnx', 'tensorrt')


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / 'notes.txt').write_text('no image')
    for wrong, message in [(tmp_path / 'notes.txt', 'notes.txt is not there or no image'),
                           (tmp_path / 'nowhere.jpg', 'is not there or no image'),
                           (np.zeros((8, 8), np.uint8), r'not uint8 \(8, 8\)'),
                           (np.zeros((8, 8, 3)), r'not float64 \(8, 8, 3\)'),
                           (np.zeros((0, 8, 3), np.uint8), r'not uint8 \(0, 8, 3\)'), (None, 'not NoneType')]:
        with pytest.raises(ExportError, match=message):
            predictor.read_image(wrong)
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert np.array_equal(predictor.read_image(grey), np.repeat(np.array(grey)[..., None], 3, 2))


# ---------------------------------------------------------------------------- where nothing else is


def closure(*names):
    """The installed distributions that these need."""
    found, left = {}, list(names)
    while left:
        distribution = metadata.distribution(left.pop())
        if distribution.name not in found:
            found[distribution.name] = distribution
            requirements = map(Requirement, distribution.requires or [])
            left += [r.name for r in requirements if r.marker is None or r.marker.evaluate({'extra': ''})]
    return found.values()


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    """The Python of an environment with NumPy, onnxruntime, Pillow and our package, and nothing else."""
    folder = tmp_path_factory.mktemp('bare')
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path('purelib', vars=dict(base=str(folder))))
    for distribution in closure('numpy', 'onnxruntime', 'pillow'):
        for name in {file.parts[0] for file in distribution.files} - {'..', '__pycache__'}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))
    (site / 'cmt_backbones').symlink_to(PACKAGE)
    return folder / 'bin' / 'python'


def call(python, code, *arguments):
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    return subprocess.run([str(python), '-I', '-c', code, *map(str, arguments)], text=True, capture_output=True,
                          cwd='/', env=env, timeout=120)


CODE = """
import sys, numpy as np
from cmt_backbones.export import load
found = load(sys.argv[1])(sys.argv[2])
np.savez(sys.argv[3], boxes=found.boxes, scores=found.scores, labels=found.labels, masks=found.masks)
print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'mmengine', 'mmcv', 'mmdet', 'cv2'}))
"""


def test_a_file_runs_without_torch_and_openmmlab(bare, mask_rcnn, tmp_path):
    # As large as the file's images: OpenCV, which is here, and the arithmetic there round resized pixels differently.
    cv2.imwrite(str(tmp_path / 'photo.png'), drawn_scenes.scene(np.random.default_rng(7), 96, 128)[0])
    done = call(bare, CODE, mask_rcnn.file, tmp_path / 'photo.png', tmp_path / 'found.npz')
    assert done.returncode == 0 and done.stdout == '[]\n', done.stdout + done.stderr
    found, wanted = np.load(tmp_path / 'found.npz'), load(mask_rcnn.file)(tmp_path / 'photo.png')
    assert len(wanted.scores) > 3 and wanted.masks.any()
    for name in ('boxes', 'scores', 'labels', 'masks'):
        assert np.array_equal(found[name], getattr(wanted, name)), name


def test_one_file_of_the_package_is_enough(bare, mask_rcnn, photo, tmp_path):
    code = CODE.replace('from cmt_backbones.export import load',
                        f'sys.path.insert(0, {str(tmp_path)!r}); from predictor import load')
    (tmp_path / 'predictor.py').write_text((PACKAGE / 'export' / 'predictor.py').read_text())
    done = call(bare, code, mask_rcnn.file, photo, tmp_path / 'found.npz')
    assert done.returncode == 0, done.stderr
    assert len(np.load(tmp_path / 'found.npz')['scores']) > 3


def test_a_backbone_asks_for_torch_there(bare):
    done = call(bare, 'import cmt_backbones; cmt_backbones.CMT')
    assert done.stderr.splitlines()[-1].startswith('ImportError: cmt_backbones needs torch and mmengine')
    done = call(bare, 'from cmt_backbones import ConvNeXt')
    assert done.stderr.splitlines()[-1].startswith('ImportError: cmt_backbones needs torch and mmengine')
    done = call(bare, 'import cmt_backbones; print(hasattr(cmt_backbones, "nothing"), cmt_backbones.__version__)')
    assert done.stdout == f'False {cmt_backbones.__version__}\n'
    # Where one of the two is there, somebody wants the backbones, and hears at once.
    code = ('import sys, types; sys.path.insert(0, sys.argv[1]); import cmt_backbones')
    done = call(bare, code, Path(sys.modules['mmengine'].__file__).parents[1])
    assert done.returncode == 0 or 'ImportError' in done.stderr

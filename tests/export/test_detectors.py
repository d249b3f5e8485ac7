"""Whole detectors as ONNX files, against what mmdet itself predicts."""
import copy
import functools
import json
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from mmdet.registry import MODELS
from torch import nn

import small_detectors
import small_models
import tool
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.export import ExportError, detectors, files, load, operators, verify, writing
from cmt_backbones.openmmlab.inference import build_model, predict, read_config


def check_photo(exported, photo, half=False):
    """A file finds in a photo of another size what mmdet's own pipeline finds."""
    found = load(exported.file)(photo)
    model = build_model(read_config(exported.config), exported.weights, deploy=True)
    if half:
        writing.round_weights(model)
    wanted = predict(model, cv2.imread(str(photo))).pred_instances
    assert len(found.scores) == len(wanted.scores) > 3
    assert np.abs(found.scores - wanted.scores.numpy()).max() < 1e-4
    assert found.names == [small_detectors.CLASSES[label] for label in found.labels]
    one, other = (verify.Objects(np.asarray(boxes) * 128 / 200, np.asarray(scores), np.asarray(labels))
                  for boxes, scores, labels in [found[:3], (wanted.bboxes, wanted.scores, wanted.labels)])
    size, anchor = (96, 128), verify.longest_anchor(model)  # in pixels of what the network sees
    assert verify.compared(one, other, 0., 20, size, anchor) == (None, len(one.scores))
    if 'masks' in wanted:
        masks = wanted.masks.numpy()
        assert found.masks.shape == masks.shape and found.masks.any()
        order = [np.abs(other.boxes - box).max(1).argmin() for box in one.boxes]
        assert (found.masks != masks[order]).mean() < 1e-4


def test_masks_of_one_size(mask_rcnn, photo):
    check_photo(mask_rcnn, photo)
    assert 'boxes and masks are those of the model' in mask_rcnn.said
    session = onnxruntime.InferenceSession(str(mask_rcnn.file))
    image, = session.get_inputs()
    assert (image.name, image.type, image.shape) == ('images', 'tensor(uint8)', [1, 3, 96, 128])
    assert {out.name: (out.type, out.shape) for out in session.get_outputs()} == dict(
        boxes=('tensor(float)', [1, 20, 4]), scores=('tensor(float)', [1, 20]),
        labels=('tensor(int64)', [1, 20]), masks=('tensor(float)', [1, 20, 28, 28]))
    model = onnx.load(mask_rcnn.file)
    aligned = [node for node in model.graph.node if node.op_type == 'RoiAlign']
    assert len(aligned) == 8  # four levels, for boxes and for masks
    for node in aligned:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes['sampling_ratio'] == 0  # as many as there are pixels; written, since defaults differ
        assert attributes['coordinate_transformation_mode'] == b'half_pixel'
    assert [node.op_type for node in model.graph.node].count('NonMaxSuppression') == 2
    assert {node.domain for node in model.graph.node} <= {'', 'pkg.onnxscript.torch_lib.common'}


def test_the_metadata(mask_rcnn):
    info = load(mask_rcnn.file).info
    assert info['cmt_backbones'] and info['config'] == 'mask_rcnn_ConvNeXt' and info['opset'] == 18
    assert info['classes'] == list(small_detectors.CLASSES)
    assert np.allclose(info['mean'], [123.675, 116.28, 103.53]) and np.allclose(info['std'], [58.395, 57.12, 57.375])
    assert info['channel_order'] == 'RGB' and info['input'] == 'uint8 RGB' and info['size'] == [96, 128]
    assert info['resize'] == dict(scale=[128, 96], keep_ratio=True) and info['score_threshold'] == .05
    assert info['task'] == 'detection' and info['nms'] and info['mask_threshold'] == .5 and not info['dynamic']
    stored = {prop.key: prop.value for prop in onnx.load(mask_rcnn.file).metadata_props}
    assert json.loads(stored['classes']) == info['classes']


def test_any_size_and_number_of_images(retinanet, photo):
    check_photo(retinanet, photo)
    model = build_model(read_config(retinanet.config), retinanet.weights)
    session = onnxruntime.InferenceSession(str(retinanet.file))
    assert session.get_inputs()[0].shape[1:] == [3, 'height', 'width']
    for count, height, width in [(1, 64, 160), (2, 97, 65), (4, 128, 64), (1, 64, 64)]:  # the last is CMT's native one
        images = [drawn_scenes.scene(np.random.default_rng(i), height, width)[0] for i in range(count)]
        inputs = files.input_of(images, load(retinanet.file).info)
        outputs = session.run(None, {'images': inputs})
        assert outputs[0].shape == (count, 20, 4) and (np.diff(outputs[1], axis=1) <= 0).all()
        for found, wanted in zip(verify.found_by(outputs, (height, width), None), verify.predicted(model, images)):
            assert verify.compared(found, wanted, .05, 20, (height, width), verify.longest_anchor(model)) == (
                None, len(wanted.scores)) != (None, 0)


def test_places_that_are_not_used(retinanet):
    session = onnxruntime.InferenceSession(str(retinanet.file))
    boxes, scores, labels = session.run(None, {'images': np.zeros((1, 3, 64, 64), np.float32)})
    boxes_at_1, scores_at_1, labels_at_1 = files.at_threshold(files.STARTS['onnxruntime'], retinanet.file, 1.)(
        np.zeros((1, 3, 64, 64), np.float32))
    assert not scores_at_1.any() and (labels_at_1 == -1).all() and not boxes_at_1.any()
    assert ((labels == -1) == (scores == 0)).all() and not boxes[labels == -1].any()
    assert len(load(retinanet.file)(np.zeros((64, 64, 3), np.uint8), score_threshold=1.1).boxes) == 0


def test_three_stages_of_boxes_and_half_the_bytes(cascade, photo):
    check_photo(cascade, photo, half=True)
    arrays = onnx.load(cascade.file).graph.initializer
    half = sum(onnx.numpy_helper.to_array(a).size for a in arrays if a.data_type == onnx.TensorProto.FLOAT16)
    whole = sum(onnx.numpy_helper.to_array(a).size for a in arrays if a.data_type == onnx.TensorProto.FLOAT)
    assert half > 3 * whole  # biases and what tracing computed stay as they are


def test_without_nms_the_predictor_does_it(faster_rcnn, photo):
    session = onnxruntime.InferenceSession(str(faster_rcnn.file))
    assert [out.shape for out in session.get_outputs()][0] == [1, 250, 4]  # 50 proposals of 5 classes
    kinds = [node.op_type for node in onnx.load(faster_rcnn.file).graph.node]
    assert kinds.count('NonMaxSuppression') == 1  # of the proposals
    check_photo(faster_rcnn, photo)


# ---------------------------------------------------------------------------- parts


class Parts(nn.Module):

    def forward(self, boxes, scores, maps, smaller, rois, levels):
        kept = torch.ops.cmt_backbones.suppress(boxes, scores, .5, 7)
        return kept, torch.ops.cmt_backbones.roi_align([maps, smaller], rois, levels, [1 / 4, 1 / 8], [7, 5], 0)


def test_the_two_operators(tmp_path):
    torch.manual_seed(0)
    corners = torch.rand(2, 40, 2, 2) * 30
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=2)
    scores = torch.rand(2, 40) - .3
    image = torch.arange(2.).repeat_interleave(40)[:, None]
    rois = torch.cat([image, boxes.flatten(0, 1)], dim=1)
    maps, smaller, levels = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 4, 5), torch.randint(2, (80, ))
    inputs = boxes, scores, maps, smaller, rois, levels
    kept, aligned = Parts()(*inputs)
    for i in range(2):
        places = (scores[i] > 0).nonzero()[:, 0]
        wanted = places[torchvision.ops.nms(boxes[i, places], scores[i, places], .5)[:7]]
        assert kept[i].nonzero()[:, 0].tolist() == sorted(wanted.tolist())
    for level, x, scale in [(0, maps, 1 / 4), (1, smaller, 1 / 8)]:
        wanted = torchvision.ops.roi_align(x, rois, (7, 5), scale, 0, aligned=True)
        assert torch.equal(aligned[levels == level], wanted[levels == level])
    written = torch.onnx.export(torch.export.export(Parts(), inputs), opset_version=18, verbose=False,
                                custom_translation_table=operators.onnx_operators())
    written.save(tmp_path / 'parts.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'parts.onnx')
    names = [node.name for node in session.get_inputs()]
    for few in (levels, torch.zeros_like(levels)):  # also where a level has none
        aligned = Parts()(*inputs[:-1], few)[1]
        outputs = session.run(None, dict(zip(names, (x.numpy() for x in (*inputs[:-1], few)))))
        assert np.array_equal(outputs[0], kept.numpy()) and np.abs(outputs[1] - aligned.numpy()).max() < 1e-5


def objects(*rows):
    """Each of a box, a score and a label."""
    return verify.Objects(np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
                          np.array([row[1] for row in rows], np.float32), np.array([row[2] for row in rows], int))


def test_what_counts_as_a_difference():
    one, other = ([1, 2, 30, 40], .9, 1), ([5, 5, 20, 20], .5, 0)
    wanted = objects(one, other)

    def difference(found, wanted, full=10):
        return verify.compared(found, wanted, .05, full)[0]

    assert difference(wanted, wanted) is None
    assert difference(objects(other, one), wanted) is None  # the order of equals is free
    for changed, message in [
            (([1, 2, 30, 40.01], .9, 1), 'the model finds label 1 with a score of 0.90000'),
            (([1, 2, 30, 40], .8995, 1), 'at the nearest place label 1 with 0.89950'),
            (([1, 2, 30, 40], .9, 2), 'the file at the nearest place label 2')]:
        assert message in difference(objects(changed, other), wanted)
    assert 'the file nothing at all' in difference(objects(), wanted)
    assert 'which the model does not' in difference(objects(one, other, ([0, 0, 9, 9], .2, 0)), wanted)
    # Within the tolerance of the threshold, or of the last place, rounding decides.
    assert difference(objects(one, other, ([0, 0, 9, 9], .05005, 0)), wanted) is None
    assert difference(objects(one, ([0, 0, 9, 9], .50005, 0)), wanted, 2) is None
    assert difference(objects(one, ([0, 0, 9, 9], .50005, 0)), wanted, 3)
    # A large box may be off by a hundred thousandth of its longer side.
    large, moved, wrong = (objects(([0, 0, 400, side], .9, 1)) for side in (800, 800.007, 800.009))
    assert verify.compared(moved, large, .05, 10) == (None, 1)
    assert 'with a score of 0.90000' in difference(wrong, large)
    # So may one that the border cuts, of its anchor's.
    cut, moved = (objects(([0, top, 96, 64], .9, 1)) for top in (14, 14.002))
    assert verify.compared(moved, cut, .05, 10, (64, 96), 800.) == (None, 1)
    for size, anchor in [((64, 96), 100.), ((65, 97), 800.)]:
        inside = objects(([1, 14, 96, 64], .9, 1))
        assert verify.compared(objects(([1, 14.002, 96, 64], .9, 1)), inside, .05, 10, size, anchor)[0]
    assert verify.compared(objects(one), objects(([9, 9, 30, 40], .9, 1)), .05, 1) == (None, 0)


def test_equal_scores_say_nothing(tmp_path):
    """All are as good as the last place, where either may have another box: that is no check."""
    config, weights = small_detectors.detector(tmp_path, 'retinanet', 'ConvNeXt')
    model = build_model(read_config(config), weights)
    nn.init.zeros_(model.bbox_head.retina_cls.weight)
    nn.init.zeros_(model.bbox_head.retina_cls.bias)
    other = copy.deepcopy(model)
    nn.init.ones_(other.bbox_head.retina_reg.bias)
    file = detectors.detector(other)
    info = writing.describe(model, '', (64, 96), False, False)

    @torch.no_grad()
    def run(images):
        return [out.numpy() for out in file(torch.from_numpy(images), torch.tensor(images.shape[2:]))]

    images = files.images_of((), (64, 96), 2)
    with pytest.raises(ExportError, match='have no box in common.*give --images with photos'):
        verify.check_detector(lambda threshold: run, model, images, functools.partial(files.input_of, info=info),
                              together=False, nms=True)


def test_a_file_that_differs_is_told_and_not_left(tmp_path, monkeypatch):
    config, weights = small_detectors.detector(tmp_path, 'retinanet', 'ConvNeXt')
    model = build_model(read_config(config), weights)
    save = writing.save

    def spoiled(*arguments):
        made = save(*arguments)
        with torch.no_grad():  # the file has what the model had until now
            model.bbox_head.retina_reg.bias += .01
        return made

    monkeypatch.setattr(writing, 'save', spoiled)
    with pytest.raises(ExportError, match='differs from the model at 96x128: the model finds label'):
        files.write(model, tmp_path / 'x.onnx', files.Options((96, 128)), say=lambda text: None)
    assert not list(tmp_path.glob('*.onnx*'))


def test_weights_beyond_what_one_file_holds_lie_beside_it(tmp_path, monkeypatch):
    config, weights = small_detectors.detector(tmp_path, 'retinanet', 'ConvNeXt')
    monkeypatch.setattr(writing, 'LARGEST', 10_000)
    out = tmp_path / 'out' / 'big.onnx'
    tool.run('export_onnx', config, weights, '--out', str(out), '--shape', '64', '96', '--max-det', '7',
             '--cfg-options', 'model.test_cfg.score_thr=0.5')
    assert {path.name for path in out.parent.iterdir()} == {'big.onnx', 'big.onnx.data'}
    assert out.stat().st_size < out.with_name('big.onnx.data').stat().st_size
    # The threshold of scores is an array of its own, also where NMS's is the same number.
    users = [node.op_type for node in onnx.load(out, load_external_data=False).graph.node
             if 'score_threshold' in node.input]
    assert users == ['Greater']
    assert load(out).run(np.zeros((1, 3, 64, 96), np.float32))[0].shape == (1, 7, 4)


def test_what_cannot_be_exported_is_refused_with_a_reason(tmp_path, capsys):
    mask_rcnn = small_models.detector(tmp_path)

    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            tool.run('export_onnx', *arguments, '--out', tmp_path / 'x.onnx')
        assert not (tmp_path / 'x.onnx').exists()
        return f'{error.value} {capsys.readouterr().err}'

    base = "_base_ = 'mmdet::{}'\n"
    for name, message in [('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'the detector is a FCOS'),
                          ('point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', 'the detector is a PointRend'),
                          ('double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py', 'the roi_head is a DoubleHeadRoIHead')]:
        (tmp_path / 'other.py').write_text(base.format(name))
        said = refusal(tmp_path / 'other.py')
        assert message in said and 'RetinaNet, Faster R-CNN, Mask R-CNN, Cascade' in said
    soft = 'model.test_cfg.rcnn.nms.type=soft_nms'
    assert "suppresses by 'soft_nms'" in refusal(mask_rcnn, '--cfg-options', soft)
    assert '--shape takes at least 32 pixels' in refusal(mask_rcnn, '--shape', 31, 64)
    assert '--shape takes at least 64 pixels' in refusal(mask_rcnn, '--shape', 32, 64, '--dynamic')
    assert '--max-det takes a number of at least 1' in refusal(mask_rcnn, '--max-det', 0)
    torch.save(dict(state_dict={'x': torch.zeros(1)}), tmp_path / 'other.pth')
    assert 'has no weights of a whole model' in refusal(mask_rcnn, tmp_path / 'other.pth')
    (tmp_path / 'photo.jpg').write_text('none')
    assert 'photo.jpg is not there or no image' in refusal(mask_rcnn, '--images', tmp_path / 'photo.jpg')


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    model = build_model(read_config(small_detectors.detector(tmp_path, 'retinanet', 'CMT')[0]))
    monkeypatch.setattr(writing, 'trace', lambda *args, **kwargs: None)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ExportError, match='onnxscript is missing: pip install onnx onnxscript onnxruntime'):
        files.write(model, tmp_path / 'x.onnx', files.Options((64, 96)), say=lambda text: None)


def test_levels_are_those_of_mmdet():
    """Regions of all sizes, those at the borders of the levels included."""
    settings = read_config(tool.ROOT / 'configs/mmdet/mask_rcnn_cmt_ti_1x.py').model.roi_head.bbox_roi_extractor
    extractor = MODELS.build(dict(settings, out_channels=2))
    torch.manual_seed(0)
    maps = [torch.randn(1, 2, 512 // stride, 512 // stride) for stride in (4, 8, 16, 32)]
    sides = torch.cat([torch.tensor([0., 56, 112, 224, 448, 512]), torch.rand(50) * 512])
    boxes = torch.stack([torch.zeros(56), torch.zeros(56), sides, sides], dim=1)
    wanted = extractor(maps, torch.cat([torch.zeros(56, 1), boxes], dim=1))
    assert torch.allclose(detectors.roi_features(extractor, maps, boxes[None]), wanted, atol=1e-6)

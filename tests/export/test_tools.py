"""What takes an exported file: pictures, metrics, and int8, by the commands."""
import json
import shutil

import cv2
import numpy as np
import onnx
import pytest

import small_models
import tool
from cmt_backbones import load_model
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.export import load
from cmt_backbones.visualization import explorer, web_demo


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Drawn scenes with what is in them."""
    folder = tmp_path_factory.mktemp('scenes') / 'shapes'
    drawn_scenes.make_shapes(folder, 4, 4, 0, [(150, 200), (200, 150)])
    return folder


def options(scenes):
    return ['--cfg-options', *(f'test_dataloader.dataset.{key}={value}' for key, value in {
        'data_root': f'{scenes}/', 'ann_file': 'annotations/val.json', 'data_prefix.img': 'images/val/'}.items()),
        f'test_evaluator.ann_file={scenes}/annotations/val.json', 'test_evaluator.classwise=False']


def test_pictures_are_those_of_the_checkpoint(retinanet, scenes, tmp_path):
    photo = scenes / 'images' / 'val' / '000000.jpg'
    tool.run('image_demo', photo, retinanet.file, '--out', tmp_path / 'file')
    tool.run('image_demo', photo, retinanet.config, retinanet.weights, '--out', tmp_path / 'model')
    one, other = (cv2.imread(str(tmp_path / name / '000000.png')) for name in ('file', 'model'))
    assert one.shape == other.shape and np.any(one != other, axis=2).mean() < .02
    plain = cv2.resize(cv2.imread(str(photo)), (one.shape[1], other.shape[0] - 24), interpolation=cv2.INTER_CUBIC)
    assert np.any(one[24:] != plain, axis=2).mean() > .02  # something is drawn


def test_the_page_shows_predictions_of_a_file_and_says_what_it_lacks(retinanet, scenes):
    models = {'file': load_model(retinanet.file), 'model': load_model(retinanet.config, retinanet.weights)}
    answers = web_demo.Answers(explorer.Explorer(models))
    path = scenes / 'images' / 'val' / '000000.jpg'
    photo, *_ = answers.opened(dict(path=str(path), orig_name=path.name))
    (one, _, said, slider), (other, *_) = (answers.predicted(photo, name, .3) for name in models)
    assert 'objects with a score of 0.3' in said and slider['visible']
    assert np.any(np.asarray(one['value']) != np.asarray(other['value']), axis=2).mean() < .02
    lacks = 'file is an exported file, which gives predictions alone. The maps of its stages and its attention need'
    for picture, said in (answers.staged(photo, 'file'), answers.attended(photo, 'file', [3, 4], None, None)):
        assert lacks in said and picture['visible'] is False
    assert answers.choices('file', None)[0]['visible'] is False and answers.choices('model', None)[0]['value'] == 2


def test_ap_is_that_of_the_checkpoint(mask_rcnn, scenes, tmp_path):
    out = tmp_path / 'metrics.json'
    # Photos that stand fit no file that lies; they are evaluated smaller than the config does.
    tool.run('test_exported', mask_rcnn.file, mask_rcnn.config, mask_rcnn.weights, '--work-dir', tmp_path, '--out',
             out, '--limit', 1, *options(scenes))
    metrics = json.loads(out.read_text())
    found, wanted = metrics[str(mask_rcnn.file)], metrics[mask_rcnn.weights]
    assert {'coco/bbox_mAP', 'coco/segm_mAP_50'} <= set(found) and found.keys() == wanted.keys()
    assert all(abs(found[key] - wanted[key]) <= .001 for key in found)


def test_what_cannot_be_tested_is_refused(mask_rcnn, scenes, tmp_path):
    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            tool.run('test_exported', *arguments)
        return str(error.value)

    segmentor = small_models.segmentor(tmp_path, 'CMT')
    assert 'is for detection, and the config for segmentation' in refusal(mask_rcnn.file, segmentor)
    stock = tool.ROOT / 'configs/mmdet/mask_rcnn_cmt_ti_1x.py'
    said = refusal(mask_rcnn.file, stock, *options(scenes))
    assert 'knows 5 classes that are not the 80 of the config' in said
    assert 'there is no file' in refusal(tmp_path / 'x.onnx', mask_rcnn.config)


def test_int8(mask_rcnn, scenes, tmp_path, capsys):
    photos, out = scenes / 'images' / 'train', tmp_path / 'int8.onnx'
    tool.run('quantize', mask_rcnn.file, '--images', photos, '--count', 2, '--tolerance', '10', '--out', out)
    said = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {'int8.onnx'}
    graph = onnx.load(out).graph
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
    scales = [arrays[node.input[1]] for node in graph.node if node.op_type == 'DequantizeLinear'
              and node.input[0] in arrays and arrays[node.input[0]].dtype == np.int8]
    assert len(scales) > 20 and all(scale.size > 1 for scale in scales)  # one for each channel
    assert 'backbone.stages.0: ' in said and 'parts in float: ' in said
    found, wanted = (load(file)(photos / '000000.jpg') for file in (out, mask_rcnn.file))
    assert len(found.scores) > 3 and abs(found.scores[0] - wanted.scores[0]) < .2

    for arguments, message in [((mask_rcnn.file, '--images', tmp_path / 'none'), 'there are no images in'),
                               ((tmp_path / 'none.onnx', '--images', photos), 'there is no file')]:
        with pytest.raises(SystemExit, match=message):
            tool.run('quantize', *arguments, '--out', tmp_path / 'x.onnx')


def test_weights_of_16_bits_are_not_quantised(cascade, scenes, tmp_path):
    shutil.copy(cascade.file, tmp_path / 'half.onnx')
    with pytest.raises(SystemExit, match='export it without --fp16'):
        tool.run('quantize', tmp_path / 'half.onnx', '--images', scenes / 'images' / 'train', '--out',
                 tmp_path / 'x.onnx')

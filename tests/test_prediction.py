"""Three lines of Python: load_model, predict, draw; and the files of tools/image_demo.py."""
import csv
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import small_models
import tool
from cmt_backbones import load_model
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.export import publishing
from cmt_backbones.openmmlab import ModelError, amp
from cmt_backbones.prediction import Records, box_around


@pytest.fixture(scope='module', params=['mmdet', 'mmseg'])
def trained(request, tmp_path_factory):
    """The config of a small detector or segmentor, and a checkpoint that holds it."""
    folder = tmp_path_factory.mktemp(request.param)
    config = small_models.detector(folder) if request.param == 'mmdet' else small_models.segmentor(folder, 'CMT')
    torch.manual_seed(0)
    built = load_model(config, device='cpu').model
    torch.save(dict(state_dict=built.state_dict(),
                    meta=dict(dataset_meta=built.dataset_meta, cfg=built.cfg.pretty_text)), folder / 'weights.pth')
    image, *_ = drawn_scenes.scene(np.random.default_rng(0), 64, 96)
    cv2.imwrite(str(folder / 'photo.png'), image)
    return config, folder / 'weights.pth', folder / 'photo.png'


def test_a_file_an_array_and_a_list_give_the_same(trained):
    config, weights, photo = trained
    model = load_model(config, weights, device='cpu')
    found = model.predict(photo, score_thr=0.)
    again, alone = model.predict([cv2.imread(str(photo)), str(photo)], score_thr=0.)
    assert again.path == '' and alone.path == str(photo)
    for other in (again, alone):
        assert np.array_equal(found.boxes, other.boxes) and np.array_equal(found.masks, other.masks)
    assert len(found.boxes) > 0 and found.names == [model.classes[i] for i in found.labels]
    assert found.masks.shape == (len(found.boxes), 64, 96) and found.masks.dtype == bool
    if found.label_map is None:
        assert np.all(np.diff(found.scores) <= 0)
        assert len(model.predict(photo, score_thr=1.1).boxes) == 0
    else:
        assert found.scores.sum() == pytest.approx(1) and found.label_map.shape == (64, 96)
    assert isinstance(found.draw(), Image.Image)


def test_by_autocast(trained, monkeypatch):
    """In bfloat16, which random weights make much of; a processor without it stays in float32."""
    config, weights, photo = trained
    plain = load_model(config, weights, device='cpu').predict(photo, 0.)
    monkeypatch.setattr(amp, 'has_bf16', lambda: False)
    found = load_model(config, weights, device='cpu', amp=True).predict(photo, 0.)
    assert np.array_equal(found.scores, plain.scores)
    monkeypatch.setattr(amp, 'has_bf16', lambda: True)
    model = load_model(config, weights, device='cpu', amp=True)
    dtypes = []
    for part in model.model.backbone.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    found = model.predict(photo, 0.)
    assert set(dtypes) == {torch.bfloat16} and np.isfinite(found.boxes).all() and len(found.boxes) > 0
    if found.label_map is None:
        assert found.scores.max() == pytest.approx(plain.scores.max(), rel=0.5)
    else:
        assert (found.label_map == plain.label_map).mean() > 0.9


def test_a_checkpoint_alone_holds_its_config(trained):
    config, weights, photo = trained
    one, other = (load_model(*given, device='cpu').predict(photo, 0.) for given in ((config, weights), (weights, )))
    assert np.array_equal(one.boxes, other.boxes) and one.names == other.names


def test_a_published_file_alone(trained, tmp_path):
    config, weights, photo = trained
    folder = tmp_path / 'published'
    publishing.publish(str(weights), folder, 'shared', licence='apache-2.0')
    file, = folder.glob('*.safetensors')
    one, other = (load_model(*given, device='cpu').predict(photo, 0.) for given in ((config, weights), (file, )))
    assert np.array_equal(one.boxes, other.boxes) and one.names == other.names


def test_json_and_csv(trained, tmp_path):
    config, weights, photo = trained
    tool.run('image_demo', photo, config, weights, '--out', tmp_path, '--score-thr', '0', '--json', '--csv',
             '--device', 'cpu')
    coco = json.loads((tmp_path / 'predictions.json').read_text())
    found = load_model(config, weights, device='cpu').predict(photo, 0.)
    assert [(i['file_name'], i['width'], i['height']) for i in coco['images']] == [('photo.png', 96, 64)]
    names = {category['id']: category['name'] for category in coco['categories']}
    assert [names[a['category_id']] for a in coco['annotations']] == found.names
    for one, mask, box in zip(coco['annotations'], found.masks, found.boxes):
        assert np.array_equal(coco_mask.decode(one['segmentation']).astype(bool), mask) and one['area'] == mask.sum()
        assert one['bbox'] == pytest.approx([*box[:2], *(box[2:] - box[:2])], abs=0.01)
    lines = [*csv.DictReader((tmp_path / 'predictions.csv').open())]
    assert [line['class'] for line in lines] == found.names
    assert [float(line['x2']) for line in lines] == pytest.approx(found.boxes[:, 2].tolist(), abs=0.02)


def test_ids_go_on_from_image_to_image(trained):
    config, weights, photo = trained
    found = load_model(config, weights, device='cpu').predict(photo, 0.)
    records = Records(found.classes)
    records.add(found)
    records.add(found)
    coco = records.as_coco()
    assert [a['id'] for a in coco['annotations']] == [*range(1, 2 * len(found.boxes) + 1)]
    assert {a['image_id'] for a in coco['annotations']} == {1, 2}


def test_what_cannot_be_predicted(trained, tmp_path):
    config, weights, _ = trained
    model = load_model(config, weights, device='cpu')
    for image, what in ((tmp_path / 'nowhere.png', 'nowhere.png'),
                        (np.zeros((4, 4)), r'an array of \(4, 4\), float64,')):
        with pytest.raises(ModelError, match=f'{what} cannot be read as an image'):
            model.predict(image)
    with pytest.raises(ModelError, match='cannot read the checkpoint'):
        load_model(tmp_path / 'nowhere.pth')
    torch.save(dict(state_dict={}), tmp_path / 'bare.pth')
    with pytest.raises(ModelError, match='bare.pth holds no config of its training: give that as well'):
        load_model(tmp_path / 'bare.pth')


def test_boxes_around_masks():
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    assert box_around(mask) == [2, 1, 6, 3]
    mask[:] = False
    mask[4, 6] = True
    assert box_around(mask) == [6, 4, 7, 5]

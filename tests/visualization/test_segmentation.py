"""Truth beside label maps, by tools/draw_segmentation.py."""
import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import tool
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.visualization import panels as panels_of, segmentation

PALETTE = [[10, 20, 30], [230, 60, 60], [60, 120, 230], [60, 190, 80], [240, 200, 40],
           [190, 90, 210]]
CONFIG = """
default_scope = 'mmseg'
test_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root={root!r}, reduce_zero_label={reduce},
    metainfo=dict(classes={classes}, palette={palette}),
    data_prefix=dict(img_path='images/val', seg_map_path='labels/val'), pipeline=[]))
"""


@pytest.fixture(scope='module', params=[False, True], ids=['background', 'void'])
def shapes(request, tmp_path_factory):
    """The config of scenes whose background is a class, or left open; and the folder of truth."""
    folder = tmp_path_factory.mktemp('segmentation')
    drawn_scenes.make_shapes(folder / 'data', 1, 3, 0, [(96, 64)])
    classes = (() if request.param else ('background', )) + drawn_scenes.CLASSES
    config = folder / 'config.py'
    config.write_text(CONFIG.format(root=str(folder / 'data'), reduce=request.param,
                                    classes=classes, palette=PALETTE[-len(classes):]))
    return config, folder / 'data' / 'labels' / 'val'


def predict(shapes, folder, change=lambda labels: labels):
    """Writes truth after a change as a segmentor's predictions by mmseg's own means."""
    from mmengine.config import Config
    from mmseg.evaluation import IoUMetric
    dataset = segmentation.test_data(Config.fromfile(shapes[0]))
    metric = IoUMetric(output_dir=str(folder), keep_results=True)
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        labels = torch.tensor(change(segmentation.truth(info)).astype(np.int64))[None]
        metric.process({}, [dict(info, pred_sem_seg=dict(data=labels % 255),
                                 gt_sem_seg=dict(data=labels))])
    return str(folder)


def panels(path):
    """The image, the truth and the prediction of a drawn picture, each (128, 192, 3), RGB."""
    picture = np.array(Image.open(path))
    head, size, step = 24, (64 * 4, 96 * 4), 96 * 4 + panels_of.GAP
    return [picture[head:head + size[0], i * step:i * step + size[1]] for i in range(3)], picture


def test_truth_and_prediction_are_drawn_side_by_side(shapes, tmp_path):
    config, labels = shapes
    out = tmp_path / 'out'
    tool.run('draw_segmentation', str(config), predict(shapes, tmp_path / 'p'), '--out', str(out))
    names = ['000000.png', '000001.png', '000002.png', 'sheet.png']
    assert sorted(path.name for path in out.iterdir()) == names
    void = 'reduce_zero_label=True' in config.read_text()
    for name in names[:3]:
        (image, truth, prediction), picture = panels(out / name)
        numbers = cv2.imread(str(labels / name), -1).repeat(4, 0).repeat(4, 1)
        colours = np.uint8([[255] * 3, *PALETTE[1:]] if void else PALETTE)
        assert np.array_equal(truth, colours[numbers])
        # A prediction leaves nothing open; here the first class is where the truth does.
        expected = np.where(numbers == 0, 1, numbers) if void else numbers
        assert np.array_equal(prediction, colours[expected])
        raw = cv2.imread(str(labels.parents[1] / 'images' / 'val' / name.replace('png', 'jpg')))
        raw = cv2.resize(raw, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        assert np.array_equal(image, raw[..., ::-1])
        below = picture[24 + 64 * 4 + panels_of.GAP:].reshape(-1, 3).tolist()
        for label in range(len(PALETTE)):  # in the legend if it is in a panel
            drawn = label in (expected if void else numbers)
            assert (PALETTE[label] in below) == drawn
    sheet = np.array(Image.open(out / 'sheet.png'))
    assert sheet.shape[0] > 2 * picture.shape[0] - 60 and sheet.shape[1] > 2 * picture.shape[1]


def test_mistakes_show_and_numbers_of_images_are_kept_to(shapes, tmp_path):
    folder = predict(shapes, tmp_path / 'p', lambda labels: np.where(labels < 4, labels + 1, 0))
    out = tmp_path / 'out'
    tool.run('draw_segmentation', str(shapes[0]), folder, '--out', str(out), '--images', '1')
    assert {path.name for path in out.iterdir()} == {'000000.png', 'sheet.png'}
    (_, truth, prediction), _ = panels(out / '000000.png')
    assert np.any(truth != prediction, axis=2).mean() > 0.3


def test_a_long_legend_takes_several_lines():
    colours = np.zeros((40, 3), np.uint8)
    one, many = (panels_of.legend(['chandelier'] * n, colours, 600) for n in (2, 40))
    assert one.width == many.width == 600 and many.height >= 8 * one.height


def test_what_does_not_fit_is_refused_with_a_reason(shapes, tmp_path):
    folder = tmp_path / 'p'
    predict(shapes, folder)

    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            tool.run('draw_segmentation', *arguments, '--out', tmp_path / 'out')
        return str(error.value)

    file = folder / '000001.png'
    good = np.array(Image.open(file))
    for labels, reason in ((good[1:], 'is 96x63 and its image 96x64'),
                           (good + np.uint8(60), 'has other labels than the')):
        Image.fromarray(labels).save(file)
        assert reason in refusal(shapes[0], folder)
    file.unlink()
    assert 'there is no prediction' in refusal(shapes[0], folder)
    assert 'there is no folder' in refusal(shapes[0], tmp_path / 'nowhere')
    assert 'there is no file' in refusal(tmp_path / 'nowhere.py', folder)

"""Masks over the best and the worst images of a run's page."""
import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as coco_mask

import small_detectors
import tool
from browser import page
from cmt_backbones.report import pictures


def filled(path, shape):
    """A path of SVG as browsers fill it by `evenodd`, as a mask of a shape (H, W)."""
    found = np.zeros(shape, np.uint8)
    for line in path[1:-1].split('ZM'):
        points = np.array([point.split() for point in line.split('L')], float) - .5  # centres of pixels
        found ^= cv2.fillPoly(np.zeros(shape, np.uint8), [points.round().astype(int)], 1)
    return found.astype(bool)


@pytest.mark.parametrize('size, shown', [((96, 128), (96, 128)), ((600, 800), (360, 480))])
def test_an_outline_is_that_of_its_mask(size, shown):
    height, width = size
    y, x = np.mgrid[:height, :width] + .5
    far = np.hypot(x / width - .4, y / height - .5)
    ring = ((far < .35) & (far > .15)) | (x > .9 * width)  # a hole, and a part of its own
    path = pictures.outline(coco_mask.encode(np.asfortranarray(ring, np.uint8)), size, shown)
    expected = cv2.resize(ring.astype(np.uint8), shown[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    found = filled(path, shown)
    assert (found & expected).sum() / (found | expected).sum() > .95 and path.count('M') == 3
    assert len(path) < 2000  # a page holds hundreds


def test_an_outline_of_polygons_and_of_nothing():
    path = pictures.outline([[10, 10, 30, 10, 30, 20, 10, 20]], (50, 60), (50, 60))
    assert filled(path, (50, 60)).sum() == pytest.approx(200, abs=60)
    assert pictures.outline(coco_mask.encode(np.zeros((8, 9), np.uint8, 'F')), (8, 9), (8, 9)) == ''


@pytest.fixture(scope='module')
def mask_run(scenes, tmp_path_factory):
    """A work_dir with the config and a checkpoint of a small Mask R-CNN."""
    work_dir = tmp_path_factory.mktemp('runs') / 'small_mask_rcnn'
    work_dir.mkdir()
    config, weights = small_detectors.detector(work_dir, 'mask_rcnn', 'CMT')
    cfg = Config.fromfile(config)
    cfg.val_dataloader = cfg.test_dataloader
    cfg.val_dataloader.dataset.update(data_root=f'{scenes}/', ann_file='annotations/val.json',
                                      data_prefix=dict(img='images/val/'))
    cfg.dump(config)
    (work_dir / 'last_checkpoint').write_text(weights)
    return work_dir


def test_masks_lie_over_truth_and_prediction(mask_run, scenes, browser):
    tool.run('report', mask_run, '--pictures', '2', '--score-thr', '0.2')
    html = mask_run / 'report.html'
    assert html.stat().st_size < 10e6
    with page(browser, html.as_uri()) as tab:
        assert 'Masks have the colours of their boxes' in tab.inner_text('#images')
        figures = tab.locator('.gallery figure')
        assert figures.count() == 4
        for i in range(4):
            truth, prediction = (figures.nth(i).locator('svg').nth(k) for k in (0, 1))
            assert truth.locator('path').count() == truth.locator('g').count() > 0
            assert 0 < prediction.locator('path').count() <= prediction.locator('g').count()
        # Each mask lies in its box.
        assert tab.evaluate("""[...document.querySelectorAll('.gallery g')].every(one => {
            const [path, box] = ['path', 'rect'].map(name => one.querySelector(name)?.getBBox());
            return !path || path.x > box.x - 3 && path.y > box.y - 3 && path.x + path.width < box.x + box.width + 3
                && path.y + path.height < box.y + box.height + 3; })""")

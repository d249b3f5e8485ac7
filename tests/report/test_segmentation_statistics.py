"""IoU by class as mmseg counts it, and of boundaries as their paper defines it."""
import cv2
import numpy as np
import pytest
import torch

from cmt_backbones.report import segmentation

CLASSES = 5


def maps(seed, open_share=.1, size=(37, 53)):
    """Truth and prediction (H, W), uint8: patches of labels, some of them open."""
    rng = np.random.default_rng(seed)

    def patches(count):
        small = rng.integers(0, count, (5, 6)).astype(np.uint8)
        return cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST)

    real = patches(CLASSES)
    found = np.where(patches(4) > 0, real, patches(CLASSES)).astype(np.uint8)
    open_ = cv2.resize(rng.random((4, 4)), size[::-1], interpolation=cv2.INTER_NEAREST) < open_share
    real[open_] = segmentation.OPEN
    return real, found


def test_iou_and_accuracy_are_those_of_mmseg():
    from mmseg.evaluation import IoUMetric
    pairs = [maps(seed) for seed in range(4)]
    total = sum(segmentation.count_pixels(*pair, CLASSES) for pair in pairs)
    areas = zip(*[IoUMetric.intersect_and_union(torch.tensor(found).long(), torch.tensor(real).long(), CLASSES, 255)
                  for real, found in pairs])
    expected = IoUMetric.total_area_to_metrics(*[sum(area) for area in areas], ['mIoU'])
    found = segmentation.Evaluation(total, np.ones((3, CLASSES)), 4, [], [])
    assert np.allclose(found.iou, expected['IoU'], atol=1e-6)
    assert np.allclose(found.accuracy, expected['Acc'], atol=1e-6)
    assert found.pixel_accuracy == pytest.approx(float(expected['aAcc']), abs=1e-6)
    assert total.sum() == sum((real != segmentation.OPEN).sum() for real, _ in pairs)


@pytest.mark.parametrize('width', [1, 2, 5, 40])
def test_boundaries_are_what_erosion_of_each_class_takes_away(width):
    labels, _ = maps(3, open_share=0)
    near = segmentation.near_boundary(labels, np.zeros_like(labels, bool), width)
    for k in range(CLASSES):
        mask = np.pad((labels == k).astype(np.uint8), 1)
        kept = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
        assert np.array_equal(near & (labels == k), (labels == k) & (kept == 0)), k


def test_open_pixels_bound_nothing():
    labels = np.zeros((9, 9), np.uint8)
    open_ = np.zeros((9, 9), bool)
    open_[4, 4] = True
    labels[4, 4] = segmentation.OPEN
    near = segmentation.near_boundary(labels, open_, 1)
    assert near.sum() == 9**2 - 7**2  # the border of the image alone
    labels[4, 4] = 1
    assert segmentation.near_boundary(labels, ~open_ & False, 1).sum() == 9**2 - 7**2 + 9


def test_the_iou_of_boundaries_by_hand():
    real = np.repeat(np.uint8([[0] * 10 + [1] * 10]), 20, 0)
    found = np.roll(real, 1, 1)
    found[:, 0] = 0  # the edge between the halves lies a pixel to the right
    assert max(1, round(segmentation.WIDTH * np.hypot(20, 20))) == 1
    agree, of_truth, of_found = segmentation.count_boundaries(real, found, 2)
    # Each half's boundary is its outline: 20 + 20 + 2 * 8 pixels, and one column more or less on each side.
    assert of_truth.tolist() == [56, 56] and of_found.tolist() == [58, 54]
    # Of class 0: the outline without the right column. Of class 1, too: without the left one, which is 0 now.
    assert agree.tolist() == [20 + 18 + 0, 20 + 16 + 0 + 0]


def test_the_iou_of_equal_maps_is_one():
    real, _ = maps(1)
    counts = segmentation.count_boundaries(real, np.where(real == segmentation.OPEN, 0, real).astype(np.uint8), CLASSES)
    whole = segmentation.Evaluation(segmentation.count_pixels(real, real % 255, CLASSES), counts, 1, [], [])
    assert np.nanmin(whole.iou) == np.nanmin(whole.boundary_iou) == whole.pixel_accuracy == 1

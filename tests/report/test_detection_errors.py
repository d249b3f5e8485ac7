"""The kinds of a detector's errors and their costs, computed by hand; its confusion matrix."""
import numpy as np
import pytest
from hypothesis import given, strategies as st

from cmt_backbones.report import detection, detection_errors

A, B = 0, 1
HERE, THERE, NOWHERE = (0, 0, 10, 10), (50, 50, 10, 10), (80, 10, 10, 10)
SHIFTED = (0, 5, 10, 10)  # an IoU of 1/3 with HERE
HALF = (0, 0, 10, 5)  # of 1/2


def matches_of(objects, detections, crowds=()):
    """An evaluation of one image from (x, y, w, h), label and, of detections, score."""
    annotations = [dict(id=i, image_id=1, bbox=list(box), area=box[2] * box[3], category_id=label + 1,
                        iscrowd=int(i - 1 in crowds)) for i, (box, label) in enumerate(objects, 1)]
    real = detection.index(dict(images=[dict(id=1, width=100, height=100)], annotations=annotations,
                                categories=[dict(id=1, name='a'), dict(id=2, name='b')]))
    boxes = np.array([box for box, *_ in detections], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found = dict(bboxes=boxes, labels=np.array([one[1] for one in detections], int),
                 scores=np.array([one[2] for one in detections], float))
    return detection.evaluate(real, [found])


TWICE = (51 + 50 * 2 / 3) / 101  # the AP of right, wrong, right on two objects: a precision of 1, then of 2/3
HALF_FOUND = 51 / 101  # recalls 0 to 0.5 of 101
CASES = {
    'right': ([(HERE, A)], [(HERE, A, .9)], [None], 1, {}),
    'class': ([(HERE, A)], [(HERE, B, .9)], ['class'], 0, {'class': 1, 'false negatives': 1}),
    'place': ([(HERE, A)], [(SHIFTED, A, .9)], ['place'], 0, {'place': 1, 'false negatives': 1}),
    # Taking the detection away helps nothing: the object stays without one.
    'both': ([(HERE, A)], [(SHIFTED, B, .9)], ['both'], 0, {'missed': 1, 'false negatives': 1}),
    'duplicate': ([(HERE, A), (THERE, A)], [(HERE, A, .9), (HALF, A, .8), (THERE, A, .7)], [None, 'duplicate', None],
                  TWICE, {'duplicate': 1 - TWICE, 'false positives': 1 - TWICE}),
    'background': ([(HERE, A), (THERE, A)], [(HERE, A, .9), (NOWHERE, A, .8), (THERE, A, .7)],
                   [None, 'background', None], TWICE, {'background': 1 - TWICE, 'false positives': 1 - TWICE}),
    'missed': ([(HERE, A), (THERE, A)], [(HERE, A, .9)], [None], HALF_FOUND,
               {'missed': 1 - HALF_FOUND, 'false negatives': 1 - HALF_FOUND}),
    # One of two about an object is mended; the other would be its duplicate and goes.
    'class, twice': ([(HERE, A)], [(HERE, B, .9), (HALF, B, .8)], ['class', 'class'], 0,
                     {'class': 1, 'false negatives': 1}),
    # The object is found already: mending the class makes a duplicate, which goes, and AP was 1.
    'class of a found object': ([(HERE, A)], [(HERE, A, .9), (HERE, B, .8)], [None, 'class'], 1, {}),
    # An object of a class that is nowhere detected: its AP of 0 goes with it.
    'missed class': ([(HERE, A), (THERE, B)], [(HERE, A, .9)], [None], .5, {'missed': .5, 'false negatives': .5}),
    # It covers an object of another class wholly and is near one of its own: the former takes less to mend.
    'class before place': ([(HERE, A), (SHIFTED, B)], [(HERE, B, .9)], ['class'], 0,
                           {'class': .5, 'missed': 0, 'false negatives': 1}),
    'nothing there': ([(HERE, A)], [], [], 0, {'missed': 1, 'false negatives': 1}),
}


@pytest.mark.parametrize('name', CASES)
def test_kinds_and_costs_by_hand(name):
    objects, detections, kinds, ap, expected = CASES[name]
    results = matches_of(objects, detections)
    matches = results.matches
    errors = detection_errors.classify(matches)
    # pycocotools' order is by class: back to that of the case, by score.
    order = np.argsort(-matches.score, kind='stable')
    found = [None if kind < 0 else detection_errors.KINDS[kind] for kind in errors.kind[order]]
    assert found == kinds
    assert results.average(iou=detection.IOU_50) == pytest.approx(ap, abs=1e-9)
    costs = detection_errors.costs(matches, errors)
    for kind, cost in costs.items():
        assert cost == pytest.approx(expected.get(kind, 0), abs=1e-9), kind


def test_thresholds_belong_to_the_nearer_kind():
    results = matches_of([((0, 0, 10, 10), A)], [((0, 9, 10, 11), A, .9), ((0, 0, 10, 1), A, .8), (HALF, B, .7)])
    errors = detection_errors.classify(results.matches)
    by_score = dict(zip(results.matches.score.round(2), errors.kind))
    assert detection_errors.KINDS[by_score[.9]] == 'background'  # 10 of 200
    assert detection_errors.KINDS[by_score[.8]] == 'place'  # an IoU of 0.1
    assert detection_errors.KINDS[by_score[.7]] == 'class'  # of 0.5


def test_what_lies_on_a_crowd_is_no_error():
    results = matches_of([(HERE, A), ((40, 40, 50, 50), A)], [(HERE, A, .9), (THERE, A, .8)], crowds=[1])
    matches = results.matches
    assert len(matches.score) == 1 and len(matches.object_label) == 1 and matches.right.all()
    assert detection_errors.confusion(matches, 2, .5).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_a_confusion_matrix_by_hand():
    objects = [(HERE, A), (THERE, A), (NOWHERE, B), ((20, 20, 10, 10), B)]
    detections = [(HERE, A, .9), (THERE, B, .8), (NOWHERE, B, .3), ((20, 20, 10, 6), B, .7), (HALF, A, .6),
                  ((30, 70, 9, 9), A, .55)]
    matches = matches_of(objects, detections).matches
    # Rows a, b, background; columns a, b, not found. The unsure detection of the third object does not count.
    assert detection_errors.confusion(matches, 2, .5).tolist() == [[1, 1, 0], [0, 1, 1], [2, 0, 0]]
    assert detection_errors.confusion(matches, 2, .2).tolist() == [[1, 1, 0], [0, 2, 0], [2, 0, 0]]


def test_the_threshold_of_the_best_f1():
    matches = matches_of([(HERE, A), (THERE, A)], [(HERE, A, .9), (THERE, A, .8), (NOWHERE, A, .7)]).matches
    assert detection_errors.best_threshold(matches) == (.8, 1)
    assert detection_errors.best_threshold(matches_of([(HERE, A)], [(THERE, A, .9)]).matches) == (.5, 0)


BOXES = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(2, 9), st.integers(2, 9))


@given(st.lists(st.tuples(BOXES, st.integers(0, 1)), max_size=6),
       st.lists(st.tuples(BOXES, st.integers(0, 1), st.integers(1, 9)), max_size=9), st.integers(0, 10))
def test_a_confusion_matrix_counts_every_object_and_every_sure_detection_once(objects, detections, threshold):
    matches = matches_of(objects, [(*rest, score / 10) for *rest, score in detections]).matches
    matrix = detection_errors.confusion(matches, 2, threshold / 10)
    labels = np.array([label for _, label in objects], int)
    assert matrix[:2].sum(1).tolist() == np.bincount(labels, minlength=2).tolist()
    sure = [label for _, label, score in detections if score >= threshold]
    assert matrix[:, :2].sum(0).tolist() == np.bincount(np.array(sure, int), minlength=2).tolist()
    assert matrix.sum() == len(objects) + matrix[2].sum()
    errors = detection_errors.classify(matches)
    assert np.array_equal(errors.kind < 0, matches.right)
    assert all(-1e-9 <= cost <= 1 + 1e-9 for kind, cost in detection_errors.costs(matches, errors).items()
               if kind != 'missed')


@given(st.lists(st.tuples(BOXES, st.integers(0, 1)), min_size=1, max_size=6),
       st.lists(st.tuples(BOXES, st.integers(0, 1), st.integers(1, 9)), max_size=9))
def test_ap_by_these_matches_is_pycocotools_own(objects, detections):
    results = matches_of(objects, [(*rest, score / 10) for *rest, score in detections])
    matches = results.matches
    count = np.bincount(matches.object_label, minlength=2)
    own = detection_errors.mean_ap(matches.label, matches.score, matches.right, count)
    assert own == pytest.approx(results.average(iou=detection.IOU_50), abs=1e-9)

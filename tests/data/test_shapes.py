"""The scenes of tools/make_shapes.py: reproducible, consistent and varied."""
import json
import os
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import tool
from cmt_backbones.data import shapes as drawn_scenes

SIZES = {(256, 192), (160, 224)}


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes') / 'out'
    tool.run('make_shapes', out, '--images', '100', '--val', '6', '--size', '256x192', '160x224')
    return out


@pytest.fixture(scope='module')
def coco(out):
    return COCO(str(out / 'annotations' / 'train.json'))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def write(out, *arguments):
    tool.run('make_shapes', out, '--size', '128x96', *arguments)
    return contents(out)


# ------------------------------------------------------------------------- the files


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    here = write(tmp_path / 'a', '--images', '5', '--seed', '7')
    command = [sys.executable, str(tool.ROOT / 'tools' / 'make_shapes.py'), str(tmp_path / 'b')]
    subprocess.run([*command, '--size', '128x96', '--images', '5', '--seed', '7'], check=True,
                   env=dict(os.environ, PYTHONHASHSEED='3', OMP_NUM_THREADS='2'))
    assert contents(tmp_path / 'b') == here
    assert set(here) == {'settings.json', 'annotations/train.json', 'annotations/val.json'} | {
        f'{kind}/{split}/{i:06d}.{suffix}' for split, count in [('train', 5), ('val', 1)]
        for kind, suffix in [('images', 'jpg'), ('labels', 'png')] for i in range(count)}


def test_seeds_and_splits_differ_and_a_larger_set_contains_a_smaller(tmp_path):
    first = write(tmp_path / 'a', '--images', '2', '--val', '2')
    other = write(tmp_path / 'b', '--images', '2', '--val', '2', '--seed', '1')
    larger = write(tmp_path / 'c', '--images', '3', '--val', '2')
    images = [content for files in (first, other) for name, content in files.items()
              if name.startswith('images')]
    assert len(set(images)) == len(images) == 8
    pictures = {name for name in first if name.startswith(('images', 'labels'))}
    assert all(larger[name] == first[name] for name in pictures)


def test_a_second_call_leaves_what_is_there_and_others_refuse(tmp_path, capsys):
    out = tmp_path / 'out'
    (out / 'nested').mkdir(parents=True)
    with pytest.raises(SystemExit, match='holds something else'):
        write(out, '--images', '2')
    (out / 'nested').rmdir()

    write(out, '--images', '2')  # an empty folder is as good as none
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    write(out, '--images', '2')
    assert 'were there already' in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    for changed in (['3'], ['2', '--seed', '1'], ['2', '--val', '2']):
        with pytest.raises(SystemExit, match='other arguments.*name another folder'):
            write(out, '--images', *changed)
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob('*')}

    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='is a file'):
        write(tmp_path / 'file', '--images', '2')


def test_an_interrupted_call_leaves_nothing_and_is_done_again(tmp_path, monkeypatch):
    complete = write(tmp_path / 'a', '--images', '3')
    scene, calls = drawn_scenes.scene, iter(range(2))

    def interrupted(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return scene(*args)

    monkeypatch.setattr(drawn_scenes, 'scene', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / 'b', '--images', '3')
    assert not (tmp_path / 'b').exists()
    monkeypatch.undo()
    assert write(tmp_path / 'b', '--images', '3') == complete
    assert {path.name for path in tmp_path.iterdir()} == {'a', 'b'}


@pytest.mark.parametrize('arguments, says', [
    (['--images', '0'], 'at least 1'),
    (['--images', 'many'], 'invalid int'),
    (['--images', '2', '--val', '0'], 'at least 1'),
    (['--images', '2', '--seed', '-1'], 'at least 0'),
    (['--images', '2', '--size', '256'], 'is not WIDTHxHEIGHT'),
    (['--images', '2', '--size', '256x40'], 'no room'),
    ([], '--images'),
])
def test_bad_arguments_are_refused_with_a_reason(arguments, says, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.run('make_shapes', tmp_path / 'out', *arguments)
    assert says in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


# ------------------------------------------------------------------------- the scenes


def test_annotations_are_what_the_class_maps_show(out, coco):
    assert len({a['id'] for a in coco.dataset['annotations']}) == len(coco.dataset['annotations'])
    for image in coco.dataset['images']:
        height, width = image['height'], image['width']
        class_map = cv2.imread(str(out / 'labels/train' / f"{image['id']:06d}.png"),
                               cv2.IMREAD_UNCHANGED)
        picture = cv2.imread(str(out / 'images/train' / image['file_name']))
        assert class_map.shape == (height, width) and picture.shape == (height, width, 3)

        drawn = np.zeros_like(class_map)
        for annotation in coco.imgToAnns[image['id']]:
            for polygon in annotation['segmentation']:
                assert len(polygon) >= 8 and len(polygon) % 2 == 0
                points = np.array(polygon).reshape(-1, 2)
                assert np.all(points >= 0) and np.all(points <= [width, height])
            mask = coco.annToMask(annotation).astype(bool)
            assert not drawn[mask].any()  # visible regions are disjoint
            drawn[mask] = annotation['category_id']
            assert annotation['area'] == mask.sum() >= drawn_scenes.VISIBLE_PIXELS
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
            assert annotation['bbox'] == box and annotation['iscrowd'] == 0
        assert np.array_equal(drawn, class_map)


def test_scenes_vary_and_classes_balance(coco):
    annotations = coco.dataset['annotations']
    assert {(i['width'], i['height']) for i in coco.dataset['images']} == SIZES
    assert {len(a) for a in coco.imgToAnns.values()} == set(range(3, 6))

    classes = Counter(a['category_id'] for a in annotations)
    assert max(classes.values()) < 1.25 * min(classes.values())
    assert [c['name'] for c in coco.dataset['categories']] == list(drawn_scenes.CLASSES)
    assert set(classes) == {c['id'] for c in coco.dataset['categories']}

    bands = Counter(int(np.searchsorted([32 ** 2, 96 ** 2], a['area'])) for a in annotations)
    assert min(bands[0], bands[1]) > 0.2 * len(annotations) and bands[2] > 0.02 * len(annotations)
    assert min(min(a['bbox'][2:]) for a in annotations) >= 12
    covered = sum(len(a['segmentation']) > 1 for a in annotations)
    assert covered > 0.02 * len(annotations)  # some are seen in parts, or have another within


def test_a_class_has_a_range_of_hues(out, coco):
    fifths = []  # of the circle of hues, by object, and the one that its class has
    for image in coco.dataset['images']:
        picture = cv2.imread(str(out / 'images/train' / image['file_name']))
        for annotation in coco.imgToAnns[image['id']]:
            inside = coco.annToMask(annotation).astype(bool)
            colour = np.median(picture[inside], 0).astype(np.float32)[None, None]
            hue = cv2.cvtColor(colour, cv2.COLOR_BGR2HSV)[0, 0, 0]
            fifths.append((int(hue // 72), annotation['category_id'] - 1))
    found, classes = np.array(fifths).T
    assert np.mean(found == classes) > 0.85  # light, patterns and shadows move some over the edge


def test_both_ways_of_mmseg_to_count_classes(out):
    pytest.importorskip('mmseg')
    from mmseg.datasets.transforms import LoadAnnotations
    path = str(out / 'labels/train/000000.png')
    plain = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    for reduce in (False, True):
        results = dict(seg_map_path=path, reduce_zero_label=reduce, seg_fields=[])
        read = LoadAnnotations()(results)['gt_seg_map']
        assert np.array_equal(read, np.where(plain == 0, 255, plain - 1) if reduce else plain)
    assert plain.max() <= len(drawn_scenes.CLASSES)


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans()))
def test_polygons_are_exactly_the_mask(mask):
    polygons = drawn_scenes.polygons(mask)
    drawn = np.zeros_like(mask)
    if polygons:
        codes = coco_mask.frPyObjects([[float(v) for v in p] for p in polygons], *mask.shape)
        drawn = coco_mask.decode(coco_mask.merge(codes)).astype(bool)
    assert np.array_equal(drawn, mask)


@pytest.mark.parametrize('label', range(5))
def test_outlines_are_around_the_origin_and_of_unit_area(label):
    for seed in range(20):
        points = drawn_scenes.outline(np.random.default_rng(seed), label)
        assert np.abs(points.mean(0)).max() < 0.05
        cover = drawn_scenes.coverage(40 * points + 60, 120, 120)
        assert cover.sum() == pytest.approx(40 ** 2, rel=0.04)  # OpenCV fills the border too


def test_settings_record_the_arguments(out):
    settings = json.loads((out / 'settings.json').read_text())
    assert settings['train'] == 100 and settings['val'] == 6 and settings['seed'] == 0
    assert {tuple(size) for size in settings['sizes']} == SIZES

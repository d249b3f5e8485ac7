"""tools/report.py as people call it, and its page in a browser."""
import json
import pickle
import re
from contextlib import redirect_stdout
from io import StringIO

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import tool
from browser import page


def results_of(html):
    """The numbers that a page holds for programs."""
    text = re.search(r'<script type="application/json" id="results">(.*?)</script>', html.read_text())[1]
    return json.loads(text)


def by_pycocotools(ann_file, predictions):
    """COCOeval.stats, from the files themselves."""
    with redirect_stdout(StringIO()):
        real = COCO(str(ann_file))
        found = []
        for one in pickle.loads(predictions.read_bytes()):
            instances = one['pred_instances']
            for (x1, y1, x2, y2), label, score in zip(*(instances[key].tolist() for key in
                                                        ('bboxes', 'labels', 'scores'))):
                found.append(dict(image_id=one['img_id'], category_id=label + 1, score=score,
                                  bbox=[x1, y1, x2 - x1, y2 - y1]))
        coco = COCOeval(real, real.loadRes(found), 'bbox')
        coco.evaluate()
        coco.accumulate()
        coco.summarize()
    return coco


@pytest.fixture(scope='module')
def detector_page(detector_run, wrong_predictions, tmp_path_factory):
    out = tmp_path_factory.mktemp('page') / 'detector.html'
    tool.run('report', detector_run, '--predictions', wrong_predictions, '--out', out)
    return out


def test_ap_is_that_of_pycocotools(detector_page, scenes, wrong_predictions):
    coco = by_pycocotools(scenes / 'annotations/val.json', wrong_predictions)
    found, = results_of(detector_page).values()
    headline = found['headline']
    assert .2 < headline['AP'] < .8
    names = ['AP', 'AP50', 'AP75', 'AP small', 'AP medium']
    assert [headline[name] for name in names] == pytest.approx(coco.stats[:5].tolist(), abs=1e-6)
    assert coco.stats[5] == -1 and headline['AP large'] is None
    precision = coco.eval['precision'][:, :, :, 0, 2]
    for k, row in enumerate(found['classes']):
        expected = [precision[..., k].mean(), precision[0, :, k].mean(), precision[5, :, k].mean()]
        assert [row['AP'], row['AP50'], row['AP75']] == pytest.approx(expected, abs=1e-6), row['name']


def test_the_confusion_matrix_sums_to_the_objects(detector_page, scenes, wrong_predictions):
    found, = results_of(detector_page).values()
    annotations = json.loads((scenes / 'annotations/val.json').read_text())['annotations']
    objects = np.bincount([one['category_id'] - 1 for one in annotations], minlength=5)
    matrix = np.array(found['confusion'])
    assert matrix[:5].sum(1).tolist() == objects.tolist() == [row['objects'] for row in found['classes']]
    scores = np.concatenate([one['pred_instances']['scores'] for one in pickle.loads(wrong_predictions.read_bytes())])
    assert matrix[:, :5].sum() == (scores >= np.float32(found['threshold'])).sum()
    assert matrix[5, :5].sum() > 0 and matrix[:5, 5].sum() > 0 and matrix[5, 5] == 0
    assert all(found['errors'][kind]['count'] for kind in ('class', 'place', 'both', 'background', 'missed'))


def drawn(tab, key):
    """The element of a plot, after it was scrolled to and drawn."""
    tab.locator(f'[data-figure={key}]').scroll_into_view_if_needed()
    tab.wait_for_selector(f'[data-figure={key}] .main-svg')
    return tab.locator(f'[data-figure={key}]')


@pytest.mark.parametrize('size', [(1280, 900), (390, 844)], ids=['desk', 'phone'])
def test_the_page_of_a_detector_in_a_browser(detector_page, browser, size):
    assert detector_page.stat().st_size < 10e6
    text = detector_page.read_text()
    assert len(re.findall(r'\* plotly\.js v\d', text)) == 1  # its script, once
    with page(browser, detector_page.as_uri(), size) as tab:
        assert tab.title() == 'small_retinanet'
        assert tab.evaluate('document.documentElement.scrollWidth') <= size[0]
        assert 'RetinaNet' in tab.inner_text('.facts') and '10 iterations' not in tab.inner_text('header')
        loss = drawn(tab, 'loss')
        assert loss.locator('.scatterlayer .trace').count() == 3  # loss, loss_cls, loss_bbox
        points = tab.evaluate("document.querySelector('[data-figure=loss]').data[0].y")
        assert len(points) == 10 and all(value > 0 for value in points)
        box = loss.locator('.nsewdrag').first.bounding_box()
        tab.mouse.move(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2)
        tab.wait_for_selector('[data-figure=loss] .hoverlayer .hovertext, [data-figure=loss] .hoverlayer .legend')
        # The curves of AP after each epoch, and those at another IoU by a button.
        assert tab.evaluate("document.querySelector('[data-figure=metrics]').data[0].x") == [1, 2]
        curve = drawn(tab, 'precision_recall')
        first = curve.locator('.scatterlayer .trace path.js-line').first.get_attribute('d')
        tab.click('text=IoU 0.75')
        tab.wait_for_function(f"document.querySelector('[data-figure=precision_recall] .trace path.js-line')"
                              f".getAttribute('d') !== {json.dumps(first)}")
        cells = drawn(tab, 'confusion_0').locator('.hm image, .heatmaplayer image')
        assert cells.count() == 1
        assert drawn(tab, 'errors').locator('.bars .point').count() == 6
        # Truth beside prediction, boxes with a hint, larger by a click.
        figures = tab.locator('.gallery figure')
        assert figures.count() == 8
        assert figures.first.locator('svg').count() == 2
        shown = figures.first.locator('svg').nth(0).bounding_box()
        beside = figures.first.locator('svg').nth(1).bounding_box()
        assert shown['y'] == beside['y'] and shown['height'] == beside['height'] > 20
        assert re.match(r'\w+: (found|not found)$', figures.first.locator('svg title').first.text_content())
        figures.first.locator('figcaption').click()
        assert tab.locator('dialog[open] svg').count() == 2


def test_a_detector_by_its_checkpoint(detector_run, scenes, tmp_path, capsys):
    """The page's AP is what mmdet's own test of the same weights has, and what the validation logged."""
    tool.run('report', detector_run, '--out', tmp_path / 'page.html')
    found = results_of(tmp_path / 'page.html')['small_retinanet']['headline']
    coco = by_pycocotools(scenes / 'annotations/val.json', detector_run / 'predictions.pkl')
    assert coco.stats[0] > 0
    names = ['AP', 'AP50', 'AP75', 'AP small', 'AP medium']
    assert [found[name] for name in names] == pytest.approx(coco.stats[:5].tolist(), abs=1e-6)
    logged = [json.loads(line) for line in next(detector_run.glob('*/vis_data/scalars.json')).open()]
    for name, key in (('AP', 'mAP'), ('AP50', 'mAP_50'), ('AP75', 'mAP_75'), ('AP medium', 'mAP_m')):
        assert round(found[name], 3) == logged[-1][f'coco/bbox_{key}']
    assert capsys.readouterr().out.splitlines()[-1].startswith(f'{tmp_path / "page.html"}: ')


def test_a_segmentor_by_its_checkpoint_and_by_label_maps(segmentor_run, scenes, tmp_path, browser):
    tool.run('report', segmentor_run, '--out', tmp_path / 'page.html')
    logged = [json.loads(line) for line in next(segmentor_run.glob('*/vis_data/scalars.json')).open()][-1]
    found = results_of(tmp_path / 'page.html')['small_upernet']
    for name in ('mIoU', 'mAcc', 'aAcc'):
        assert round(100 * found['headline'][name], 2) == pytest.approx(logged[name], abs=1e-5)
    sizes = [cv2.imread(str(path), -1).size for path in (scenes / 'labels/val').iterdir()]
    assert np.sum(found['confusion']) == sum(sizes)
    with page(browser, (tmp_path / 'page.html').as_uri()) as tab:
        assert drawn(tab, 'classes').locator('.bars .point').count() > 5
        drawn(tab, 'confusion_0')
        pictures = tab.locator('.gallery img')
        assert pictures.count() == 4 * 8
        assert tab.evaluate("[...document.querySelectorAll('.gallery img')].every(one => one.naturalWidth > 60)")

    # The truth as label maps: all is right, boundaries as well.
    tool.run('report', segmentor_run, '--predictions', scenes / 'labels/val', '--out', tmp_path / 'truth.html')
    perfect = results_of(tmp_path / 'truth.html')['small_upernet']['headline']
    assert perfect == {'mIoU': 1, 'mAcc': 1, 'aAcc': 1, 'boundary IoU': 1}


def test_several_runs_lie_beside_one_another(detector_run, wrong_predictions, copied, tmp_path, browser):
    other = copied(detector_run)
    other = other.rename(other.with_name('another'))
    (other / 'last_checkpoint').unlink()
    for path in other.glob('*.pth'):
        path.unlink()
    out = tmp_path / 'both.html'
    tool.run('report', detector_run, other, '--predictions', wrong_predictions, wrong_predictions, '--out', out)
    found = results_of(out)
    assert [*found] == ['small_retinanet', 'another']
    assert found['small_retinanet']['headline'] == found['another']['headline']
    with page(browser, out.as_uri()) as tab:
        assert tab.locator('#comparison tbody tr').count() == 2
        assert 'another: the run has no last_checkpoint' in tab.inner_text('header')
        figures = json.loads(tab.locator('#figures').text_content())
        shown = [one['name'] for one in figures['loss']['data'] if one['visible']]
        assert shown == ['small_retinanet', 'another'] and len(figures['loss']['data']) == 6
        loss = drawn(tab, 'loss')
        assert loss.locator('.scatterlayer .trace').count() == 2
        before = loss.locator('path.js-line').first.get_attribute('d')
        tab.click('text=loss_bbox')
        tab.wait_for_function("document.querySelector('[data-figure=loss] path.js-line').getAttribute('d') !== "
                              + json.dumps(before))
        assert drawn(tab, 'confusion_0').is_visible() and not tab.locator('[data-figure=confusion_1]').is_visible()
        tab.locator('#errors [role=tab]').nth(1).click()
        assert drawn(tab, 'confusion_1').is_visible() and not tab.locator('[data-figure=confusion_0]').is_visible()
        assert tab.locator('#images [role=tab][aria-selected=true]').inner_text() == 'another'


def test_a_run_without_a_checkpoint_has_a_page_of_its_curves(detector_run, copied, tmp_path, browser, capsys):
    work_dir = copied(detector_run)
    for path in work_dir.glob('*.pth'):
        path.unlink()
    log = next(work_dir.glob('*/vis_data/scalars.json'))
    log.write_text('\n'.join(log.read_text().splitlines()[:3]) + '\n{"loss": 0.9, "it')  # killed as it wrote
    (work_dir / 'last_checkpoint').unlink()
    tool.run('report', work_dir)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == 'report: small_retinanet: unfinished: 0 of 2 epochs are done and 3 iterations are logged'
    assert 'nothing could be evaluated' in told[1]
    with page(browser, (work_dir / 'report.html').as_uri()) as tab:
        assert 'unfinished: 0 of 2 epochs' in tab.inner_text('header')
        drawn(tab, 'loss')
        assert tab.locator('#accuracy').count() == 0


def refused(*arguments):
    with pytest.raises(SystemExit) as ended:
        tool.run('report', *arguments)
    assert '\n' not in ended.value.code
    return ended.value.code


def test_what_is_wrong_is_said_in_one_line(detector_run, segmentor_run, wrong_predictions, scenes, tmp_path):
    assert refused(tmp_path / 'nowhere') == f'report: there is no folder {tmp_path / "nowhere"}'
    assert 'is not the work_dir of a training' in refused(tmp_path)
    assert 'there is no checkpoint x.pth' in refused(detector_run, '--checkpoint', 'x.pth')
    assert 'there is no file (.pkl) x.pkl' in refused(detector_run, '--predictions', 'x.pkl')
    assert 'there is no folder of label maps x' in refused(segmentor_run, '--predictions', 'x')
    assert 'runs of one kind go on a page together' in refused(detector_run, segmentor_run)
    assert 'is named twice' in refused(detector_run, detector_run)
    (tmp_path / 'torn.pkl').write_bytes(wrong_predictions.read_bytes()[:100])
    assert 'is not a whole pickle file' in refused(detector_run, '--predictions', tmp_path / 'torn.pkl')
    gone = refused(detector_run, '--cfg-options', 'val_dataloader.dataset.data_root=/nowhere/')
    assert gone.startswith('report: small_retinanet: its val data are gone: /nowhere/annotations/val.json. Start in')
    gone = refused(segmentor_run, '--cfg-options', 'val_dataloader.dataset.data_root=/nowhere/')
    assert gone.startswith('report: small_upernet: its val data are gone: /nowhere/images/val. Start in')
    other = refused(segmentor_run, '--checkpoint', detector_run / 'epoch_2.pth')
    assert 'is not of this config' in other
    broken = pickle.loads(wrong_predictions.read_bytes())
    (tmp_path / 'fewer.pkl').write_bytes(pickle.dumps(broken[1:]))
    assert 'has nothing on' in refused(detector_run, '--predictions', tmp_path / 'fewer.pkl')


def test_a_package_that_is_missing_is_named(detector_run, monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, found=importlib.util.find_spec:
                        None if name == 'plotly' else found(name))
    assert refused(detector_run) == 'report: a report needs plotly: pip install plotly'


def test_images_that_are_none_are_named_and_large_ones_are_small_on_the_page(detector_run, scenes, tmp_path, capsys):
    import shutil
    data = shutil.copytree(scenes, tmp_path / 'data')
    first, second, *_ = sorted((data / 'images/val').iterdir())
    first.write_bytes(b'no image')
    image = cv2.imread(str(second))
    height = 50_000_000 // 7000
    cv2.imwrite(str(second), cv2.resize(image, (7000, height), interpolation=cv2.INTER_NEAREST))
    coco = json.loads((data / 'annotations/val.json').read_text())
    coco['images'][1].update(width=7000, height=height)
    (data / 'annotations/val.json').write_text(json.dumps(coco))
    options = ['--cfg-options', f'val_dataloader.dataset.data_root={data}/']
    tool.run('report', detector_run, '--out', tmp_path / 'page.html', *options)
    told = capsys.readouterr().err
    assert f'1 image cannot be read and is left out: {first}' in told
    found = results_of(tmp_path / 'page.html')['small_retinanet']
    assert found['data'].startswith('7 val images')
    assert (tmp_path / 'page.html').stat().st_size < 10e6

    for path in (data / 'images/val').iterdir():
        path.write_bytes(b'no image')
    assert 'none of its 8 val images can be read' in refused(detector_run, *options)

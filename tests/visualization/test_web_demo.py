"""The page to try models on, in a browser: a photo is dropped, the slider moved, a point clicked."""
import _thread
import contextlib
import io
import itertools
import socket
import sys
import threading
import time
import zlib
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger
from PIL import Image

import small_detectors
import small_models
import tool
from browser import page
from cmt_backbones import CMT, load_model
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.visualization import attention_maps, web_demo
from cmt_backbones.visualization.explorer import Explorer, read_photo
from cmt_backbones.visualization.panels import DrawingError

pytest.importorskip('gradio', reason='needs gradio 6')
asked = []  # what this process has looked up or connected to


def listen(event, args):
    if event == 'socket.getaddrinfo':
        asked.append(args[0])
    elif event == 'socket.connect' and isinstance(args[1], tuple):
        asked.append(args[1][0])


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """A drawn scene of 200x150, where the models see 128x96."""
    path = tmp_path_factory.mktemp('photo') / 'scene.png'
    cv2.imwrite(str(path), drawn_scenes.scene(np.random.default_rng(7), 150, 200)[0])
    return path


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Mask R-CNN with CMT and UperNet with ConvNeXt."""
    folder = tmp_path_factory.mktemp('models')
    return {'detector': load_model(*small_detectors.detector(folder, 'mask_rcnn', 'CMT'), device='cpu'),
            'segmentor': load_model(small_models.segmentor(folder, 'ConvNeXt'), device='cpu')}


@pytest.fixture(scope='module')
def served(models):
    """The address of a page."""
    sys.addaudithook(listen)
    blocks = web_demo.build(models)
    yield web_demo.launch(blocks)
    blocks.close()


def picture(tab, name):
    """The picture of an element, (H, W, 3)."""
    tab.wait_for_selector(f'#{name} img')
    return np.asarray(Image.open(io.BytesIO(urlopen(tab.locator(f'#{name} img').get_attribute('src')).read()))
                      .convert('RGB'))


def test_a_photo_a_slider_a_point_and_another_model(browser, served, models, photo):
    runs, requests = [], []
    hooks = [model.model.backbone.register_forward_hook(lambda *_: runs.append(1)) for model in models.values()]
    with page(browser, 'about:blank', (1400, 1000)) as tab:
        tab.on('request', lambda request: requests.append(request.url))
        tab.goto(served)
        tab.get_by_text('Drop a photo first.').first.wait_for()
        tab.set_input_files('#photo input[type=file]', photo)
        tab.get_by_text('0 objects with a score of 0.3 or more').wait_for()
        assert tab.locator('#of_photo').inner_text() == 'scene.png: 200 x 150'
        assert picture(tab, 'drawn').shape == (24 + 450, 600, 3)
        tab.get_by_role('tab', name='Stages').click()
        assert picture(tab, 'maps').shape[0] == 2 * (24 + 381) + 8
        count = len(runs)  # for the predictions, and for the maps and the attention
        assert count == 2

        tab.get_by_role('tab', name='Predictions').click()
        found, slider = models['detector'].predict(photo, 0.), tab.locator('#threshold input[type=range]')
        runs.clear()
        slider.press('Home')
        tab.get_by_text('20 objects with a score of 0 or more').wait_for()
        slider.fill('0.2')
        several = int((found.scores >= .2).sum())
        assert 0 < several < 20
        tab.get_by_text(f'{several} objects with a score of 0.2 or more').wait_for()
        assert tab.locator('#rows tr').count() == 1 + several  # with the names of the columns
        assert not runs  # the model has not seen it again

        image = tab.locator('#photo img')
        box = image.bounding_box()
        image.click(position=dict(x=box['width'] * .75, y=box['height'] * .4))
        tab.get_by_text('both is the attention').wait_for()
        runs.clear()
        array = cv2.imread(str(photo))
        attention, drawn = attention_maps.Attention(models['detector'].model, array), picture(tab, 'attention')
        # A mouse is at whole pixels of the window, which those of the photo are not.
        point, = (near for near in itertools.product((149, 150, 151), (59, 60, 61))
                  if np.array_equal(drawn, attention_maps.draw(attention, array, near, 2, None)))
        tab.locator('#stage label').nth(3).click()
        tab.locator('#block label').get_by_text('1', exact=True).click()
        expected = attention_maps.draw(attention, array, point, 3, 0)  # of 8 heads, another height
        tab.wait_for_function(f'document.querySelector("#attention img").naturalHeight == {expected.height}')
        assert np.array_equal(picture(tab, 'attention'), expected)
        assert len(runs) == 1  # that of this test

        tab.locator('#model label').nth(1).click()
        tab.get_by_text('the backbone is a ConvNeXt, which has no attention').wait_for()
        assert not tab.locator('#threshold').is_visible() and not tab.locator('#stage').is_visible()
        tab.get_by_role('tab', name='Predictions').click()
        tab.get_by_text('share of the photo').first.wait_for()
        tab.locator('#model label').nth(0).click()
        tab.get_by_text(f'{several} objects with a score of 0.2 or more').wait_for()
        assert tab.locator('#threshold').is_visible()
    for hook in hooks:
        hook.remove()
    assert requests and all(url.startswith((served, 'data:', 'blob:')) for url in requests)
    assert asked and {*asked} <= {'127.0.0.1', 'localhost', None}


def test_the_log_of_a_training_in_this_process_goes_on(models, tmp_path):
    training = MMLogger.get_instance('of_a_training', log_file=str(tmp_path / 'training.log'))
    training.info('before')
    blocks = web_demo.build(models)
    try:
        web_demo.launch(blocks)
    finally:
        blocks.close()
    training.info('after')
    CMT('tiny').init_weights()  # which mmengine tells in the log
    logged = (tmp_path / 'training.log').read_text()
    assert logged.index('before') < logged.index('after') < logged.index('stem.layers.0.weight')


def test_files_that_are_no_photos(browser, served, photo, tmp_path):
    (tmp_path / 'notes.png').write_text('none of the images')
    with page(browser, served) as tab:
        tab.set_input_files('#photo input[type=file]', tmp_path / 'notes.png')
        tab.get_by_text('notes.png is no image: drop a JPEG, PNG, WebP, BMP or TIFF').wait_for()
        tab.get_by_label('Remove Image').click()
        tab.get_by_text('notes.png is no image').wait_for(state='hidden')  # gradio has taken it away
        tab.set_input_files('#photo input[type=file]', photo)
        tab.get_by_text('objects with a score').wait_for()
        assert tab.locator('#of_photo').inner_text() == 'scene.png: 200 x 150'


def test_large_photos_are_made_smaller_and_larger_ones_refused(models, tmp_path):
    image = cv2.resize(drawn_scenes.scene(np.random.default_rng(7), 150, 200)[0], (8160, 6120))  # 50 megapixels
    cv2.imwrite(str(tmp_path / 'phone.jpg'), image)
    read = read_photo(str(tmp_path / 'phone.jpg'), 'phone.jpg')
    assert read.image.shape == (1536, 2048, 3) and read.scale == 2048 / 8160
    assert read.said == 'phone.jpg: 8160 x 6120, made smaller to 2048 x 1536 before the model sees it'
    answers = web_demo.Answers(Explorer(models))
    *_, said, _ = answers.predicted(read, 'detector', 0.)
    assert said.startswith('20 objects')
    assert answers.clicked(read, (4080, 6119)) == [1024, 6119 * 2048 / 8160]

    header = io.BytesIO()
    Image.new('L', (8, 8)).save(header, 'PNG')
    for side in (12000, 60000):  # the latter is what Pillow takes for an attack
        content = bytearray(header.getvalue())
        content[16:24] = side.to_bytes(4, 'big') * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
        (tmp_path / 'map.png').write_bytes(content)
        with pytest.raises(DrawingError, match='map.png has more than 120 megapixels: make it smaller first'):
            read_photo(str(tmp_path / 'map.png'), 'map.png')


def test_photos_stand_upright_and_others_are_named(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # a phone held upright
    Image.new('RGB', (64, 48), 'red').save(tmp_path / 'upright.jpg', exif=exif)
    assert read_photo(str(tmp_path / 'upright.jpg'), 'upright.jpg').image.shape == (64, 48, 3)
    Image.new('RGB', (64, 48)).save(tmp_path / 'sign.ico')
    with pytest.raises(DrawingError, match='sign.ico cannot be read by OpenCV.*save it as JPEG or PNG'):
        read_photo(str(tmp_path / 'sign.ico'), 'sign.ico')
    with pytest.raises(DrawingError, match='gone.png is no image'):
        read_photo(str(tmp_path / 'gone.png'), 'gone.png')


def test_answers_to_what_cannot_be_shown(models, photo, tmp_path):
    answers = web_demo.Answers(Explorer(models))
    read, point, said = answers.opened(dict(path=str(photo), orig_name='scene.png'))
    assert point is None and answers.opened(None) == (None, None, '')
    assert answers.predicted(None, 'detector', 0.)[2] == answers.staged(None, 'detector')[1] == 'Drop a photo first.'
    assert answers.clicked(None, (3, 4)) is None
    assert answers.attended(None, 'detector', None, 2, 'all')[1] == 'Drop a photo first.'
    hidden, said = answers.attended(read, 'detector', None, 2, 'all')
    assert said == 'Click a point of the photo.' and hidden['visible'] is False
    assert 'ConvNeXt, which has no attention' in answers.attended(read, 'segmentor', [3, 4], 2, 'all')[1]

    as_it_is = {'test_dataloader.dataset.pipeline': [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]}
    small = load_model(small_models.segmentor(tmp_path, 'CMT'), device='cpu', options=as_it_is)
    cv2.imwrite(str(tmp_path / 'tiny.png'), np.zeros((20, 20, 3), np.uint8))
    answers = web_demo.Answers(Explorer(dict(small=small)))
    tiny = read_photo(str(tmp_path / 'tiny.png'), 'tiny.png')
    for said in (answers.predicted(tiny, 'small', .3)[2], answers.staged(tiny, 'small')[1]):
        assert 'images must be at least 32 pixels high and wide' in said
    cv2.imwrite(str(tmp_path / 'one.png'), np.zeros((32, 32, 3), np.uint8))
    one = read_photo(str(tmp_path / 'one.png'), 'one.png')
    assert answers.staged(one, 'small')[0]['value'].width == 2 * 508 + 8  # the last map is a pixel


def test_a_label_map_and_what_is_kept(models, photo):
    explorer = Explorer(models)
    scenes = [read_photo(str(photo), 'scene.png')]
    scenes += [scenes[0]._replace(image=scenes[0].image[:, :150 - i], key=str(i)) for i in range(5)]
    found = [explorer.predictions('segmentor', scene, .3) for scene in scenes]
    assert sum(float(row[1].rstrip('%')) for row in found[0].rows) == pytest.approx(100, abs=1)
    assert found[0].said == f'{len(found[0].rows)} classes' and found[0].picture.width == 600  # the map alone
    assert len(explorer.kept) == len(models) + 1
    assert explorer.found('segmentor', scenes[-1]) is explorer.found('segmentor', scenes[-1])


def test_the_command_serves_until_it_is_interrupted(free_port, tmp_path):
    config, weights = small_detectors.detector(tmp_path, 'retinanet', 'CMT')
    said, pages = io.StringIO(), []

    def visit():
        while 'Ctrl-C' not in said.getvalue():
            time.sleep(.05)
        pages.append(urlopen(f'http://127.0.0.1:{free_port}').read().decode())
        _thread.interrupt_main()

    visitor = threading.Thread(target=visit, daemon=True)
    visitor.start()
    with contextlib.redirect_stdout(said):
        tool.run('web_demo', config, weights, '--port', free_port, '--device', 'cpu')
    visitor.join()
    assert f'http://127.0.0.1:{free_port} (Ctrl-C ends it)\n' in said.getvalue()
    assert 'retinanet_CMT.py' in pages[0]
    with pytest.raises(OSError):
        urlopen(f'http://127.0.0.1:{free_port}')


def test_what_the_command_refuses(tmp_path, monkeypatch):
    config, weights = small_detectors.detector(tmp_path, 'retinanet', 'CMT')
    other = small_models.segmentor(tmp_path, 'CMT')

    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            tool.run('web_demo', *arguments)
        assert '\n' not in str(error.value)
        return str(error.value)

    assert 'web_demo: cannot read the config' in refusal(tmp_path / 'nowhere.py', weights)
    assert 'nowhere.pth cannot be found' in refusal(config, tmp_path / 'nowhere.pth')
    assert 'is not of this config' in refusal(config, weights, '--compare', other, weights)
    assert 'there is no file nowhere.onnx' in refusal('nowhere.onnx')
    assert refusal(config) == refusal(config, weights, 'more') == '2'
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert 'the page needs gradio, which cannot be imported' in refusal(config, weights)


def test_a_port_that_is_taken(models):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        with pytest.raises(DrawingError, match='cannot serve on 127.0.0.1, port .*Give another --port'):
            web_demo.launch(web_demo.build(models), port=taken.getsockname()[1])


def test_names_to_choose_between():
    assert web_demo.names_of([['a/c.py', 'w/one/e.pth'], ['a/c.py', 'w/two/e.pth'], ['m.onnx']]) == [
        'c.py, one/e.pth', 'c.py, two/e.pth', 'm.onnx']
    assert web_demo.names_of([['a/c.py', 'w/e.pth'], ['b/c.py', 'w/e.pth']]) == ['1. c.py, w/e.pth', '2. c.py, w/e.pth']

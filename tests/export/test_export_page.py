"""The examples of docs/export.md, run as they stand."""
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

import tool
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.export import load

PAGE = (tool.ROOT / 'docs' / 'export.md').read_text()


def example(language: str) -> str:
    block, = re.findall(rf'```{language}\n(.*?)```', PAGE, re.S)
    assert len(block.splitlines()) <= 36
    return block


def test_the_example_in_python(mask_rcnn, photo, tmp_path):
    (tmp_path / 'detect.py').write_text(example('python'))
    done = subprocess.run([sys.executable, 'detect.py', str(mask_rcnn.file), str(photo)], cwd=tmp_path, text=True,
                          capture_output=True, timeout=120, env=dict(os.environ, PYTHONPATH=str(tool.ROOT)))
    assert done.returncode == 0, done.stderr
    found = load(mask_rcnn.file)(str(photo))
    assert len(done.stdout.splitlines()) == len(found.scores) > 3
    assert done.stdout.startswith(f'{found.names[0]} {found.scores[0]:.3f} ')


@pytest.fixture(scope='module')
def packages(tmp_path_factory):
    """A folder with the packages of npm that the example needs."""
    if not shutil.which('node') or not shutil.which('npm'):
        if os.environ.get('CI'):
            pytest.fail('the example in JavaScript needs node and npm, which CI must have')
        pytest.skip('node or npm is not installed, by which the example in JavaScript runs')
    folder = tmp_path_factory.mktemp('node')
    names, = re.findall(r'^npm install (.+)$', PAGE, re.M)
    done = subprocess.run(['npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', *names.split()],
                          cwd=folder, text=True, capture_output=True, timeout=240)
    if done.returncode and not os.environ.get('CI'):
        pytest.skip(f'npm cannot install {names} here: {done.stderr.strip().splitlines()[-1]}')
    assert done.returncode == 0, done.stderr
    return folder


def test_the_example_in_javascript(mask_rcnn, packages):
    # As large as the file's images, so that nothing is resized: the same pixels, and another build of onnxruntime.
    cv2.imwrite(str(packages / 'photo.png'), drawn_scenes.scene(np.random.default_rng(7), 96, 128)[0])
    (packages / 'detect.mjs').write_text(example('js').replace('>= 0.5', '>= 0.05'))
    done = subprocess.run(['node', 'detect.mjs', str(mask_rcnn.file), 'photo.png'], cwd=packages, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = load(mask_rcnn.file)(packages / 'photo.png')
    rows = [[float(part) for part in line.split()] for line in done.stdout.splitlines()]
    assert len(rows) == len(found.scores) > 3
    for label, score, *box in rows:
        near = np.flatnonzero((found.labels == label) & (np.abs(found.scores - score) < .002))
        assert np.abs(found.boxes[near] - box).max(1).min() < .06  # printed to a tenth

"""The notebook of docs/, run whole by a kernel of its own, on less data than it says."""
import base64
import io
import os

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from tool import ROOT

NOTEBOOK = ROOT / 'docs/tutorial.ipynb'


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """A folder in which the notebook was run, and the notebook with what its cells gave."""
    folder = tmp_path_factory.mktemp('tutorial')
    for name in ('tools', 'configs'):
        (folder / name).symlink_to(ROOT / name)
    notebook = nbformat.read(NOTEBOOK, 4)
    env = dict(os.environ, TUTORIAL_IMAGES='32', TUTORIAL_EPOCHS='1', PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    client = NotebookClient(notebook, timeout=300, kernel_name='python3',
                            resources=dict(metadata=dict(path=str(folder))))
    client.execute(env=env)  # raises where a cell does
    return folder / 'work_dirs/tutorial', notebook


def test_it_ends_with_a_detector_and_its_file(ran):
    folder, notebook = ran
    last = notebook.cells[-2].outputs[-1].text
    assert last.endswith(' MB\n') and ' objects, as above; ' in last
    assert (folder / 'run/epoch_1.pth').is_file() and (folder / 'my_detector.onnx').stat().st_size > 1e6
    written = next(cell for cell in notebook.cells if cell.source.startswith('%run tools/export_onnx.py'))
    assert 'boxes are those of the model' in ''.join(output.get('text', '') for output in written.outputs)


def test_its_pictures_show_something(ran):
    _, notebook = ran
    pictures = [output.data['image/png'] for cell in notebook.cells if cell.cell_type == 'code'
                for output in cell.outputs if 'image/png' in output.get('data', {})]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert('RGB')) for picture in pictures]
    assert len(pictures) == 4  # scenes, curves, truth beside detections, one photo
    assert all(picture.std() > 15 and min(picture.shape[:2]) > 100 for picture in pictures)


def test_it_is_committed_without_outputs():
    """What a run prints has paths of its machine, and its pictures are megabytes that differ with each run."""
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            assert not cell.outputs and cell.execution_count is None and not cell.metadata

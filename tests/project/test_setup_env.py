"""What set-up says on a machine that lacks something, and which mmcv wheel it takes."""
import platform
import re
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from mmengine.utils import is_installed

from tool import ROOT, load

setup_env = load('setup_env')
Usage = namedtuple('Usage', 'total used free')


@pytest.mark.parametrize('version', [(2, 7), (3, 9), (3, 13)])
def test_unsupported_pythons(version):
    told = (rf'Python {version[0]}.{version[1]} is not supported: '
            r'install Python 3.10 to 3.12 and call `make PYTHON=python3.12`')
    with pytest.raises(setup_env.SetupError, match=told):
        setup_env.check_python(version)


@pytest.mark.parametrize('version', [(3, 10), (3, 11), (3, 12)])
def test_supported_pythons(version):
    setup_env.check_python(version)


def test_too_little_disk(tmp_path):
    missing = tmp_path / 'not' / 'there' / 'yet'
    told = rf'3.0 GB are free at {tmp_path} and 8 GB are needed: free 5.0 GB'
    with pytest.raises(setup_env.SetupError, match=told):
        setup_env.check_disk(missing, 8, lambda path: Usage(0, 0, 3e9))
    setup_env.check_disk(missing, 8, lambda path: Usage(0, 0, 8e9))


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(setup_env.SetupError, match=r'no C\+\+ compiler \(g\+\+\).*apt-get install g\+\+'):
        setup_env.check_compiler(which=lambda name: None)
    with pytest.raises(setup_env.SetupError, match='Python.h.*apt-get install python3-dev'):
        setup_env.check_compiler(which=lambda name: '/usr/bin/' + name, include=tmp_path)


def test_errors_are_one_line(tmp_path):
    """As a command, on a machine whose disk is full (a limit that no machine meets)."""
    script = tmp_path / 'tools' / 'setup_env.py'
    script.parent.mkdir()
    text = (ROOT / 'tools/setup_env.py').read_text()
    script.write_text(text.replace("'environment': 8", "'environment': 10**9"))
    for name in ('requirements.txt', 'requirements/openmmlab.txt', 'setup.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    run = subprocess.run([sys.executable, str(script)], text=True, capture_output=True)
    assert run.returncode == 1 and run.stdout == ''
    assert run.stderr.startswith('set-up: ') and run.stderr.count('\n') == 1 and 'GB are needed' in run.stderr


@pytest.mark.parametrize('stack, mmcv', [('openmmlab', 'mmcv=='), ('onedl', 'onedl-mmcv==')])
def test_a_finished_environment_is_left_alone(stack, mmcv, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(setup_env, 'run', lambda command, **kwargs: calls.append(command))
    monkeypatch.setattr(setup_env, 'mmcv_wheel',
                        lambda python, requirement, cache: Path(requirement + '.whl'))
    monkeypatch.setattr(setup_env, 'make_venv', lambda venv: venv.mkdir() or venv / 'bin/python')
    arguments = stack, tmp_path / '.venv', tmp_path / 'cache'
    setup_env.set_up(*arguments)
    assert str(calls[1][-1]).startswith(mmcv)
    calls.clear()
    setup_env.set_up(*arguments)
    assert calls == []


def test_a_wheel_for_another_torch_is_never_used(tmp_path):
    python = Path(sys.executable)
    tag = ''.join(platform.python_version_tuple()[:2])
    fits = tmp_path / f'mmcv-9.9-torch{torch.__version__}-cp{tag}-' / 'mmcv-9.9.whl'
    fits = fits.parent.with_name(fits.parent.name + ('cpu' if not torch.cuda.is_available() else
                                                     'cu' + torch.version.cuda)) / fits.name
    for wheel in (tmp_path / f'mmcv-9.9-torch0.1-cp{tag}-cpu' / 'mmcv-9.9.whl', fits):
        wheel.parent.mkdir()
        wheel.touch()
    assert setup_env.mmcv_wheel(python, 'mmcv==9.9', tmp_path) == fits


@pytest.mark.parametrize('stack', setup_env.STACKS)
def test_a_stack_is_pinned_whole(stack):
    names = [setup_env.STACKS[stack][0], 'torch', 'setuptools']
    assert [re.split('[<>=]', line)[0]
            for line in setup_env.pinned(setup_env.requirements_of(stack), *names)] == names


def test_what_is_installed_is_what_is_pinned():
    stack = 'onedl' if is_installed('onedl-mmcv') else 'openmmlab'
    text = '\n'.join(file.read_text() for file in setup_env.requirements_of(stack))
    exact = re.findall(r'^([\w-]+)==([\w.]+)', text, re.MULTILINE)
    assert len(exact) > 6
    assert {name: version(name).split('+')[0] for name, _ in exact} == dict(exact)


def test_progress_of_a_build():
    assert setup_env.compiled('...\n[3/77] c++\n[34/77] c++ -O3') == '34/77 files compiled'
    assert setup_env.compiled('Collecting mmcv') == 'preparing'

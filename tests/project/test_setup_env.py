"""What set-up says on a machine that lacks something, and which mmcv wheel it takes."""
import platform
import re
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
import torch

from tool import ROOT, load

setup_env = load('setup_env')
Usage = namedtuple('Usage', 'total used free')


@pytest.mark.parametrize('version', [(2, 7), (3, 9), (3, 14)])
def test_unsupported_pythons(version):
    told = (rf'Python {version[0]}.{version[1]} is not supported: '
            r'install Python 3.10 to 3.13 and call `make PYTHON=python3.13`')
    with pytest.raises(setup_env.SetupError, match=told):
        setup_env.check_python(version)


@pytest.mark.parametrize('version', [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_supported_pythons(version):
    setup_env.check_python(version)


def test_mmcv_does_not_build_on_the_newest_python():
    with pytest.raises(setup_env.SetupError, match='does not build on Python 3.13 .*leave out OPERATORS=compiled'):
        setup_env.check_compiled('openmmlab', (3, 13))
    setup_env.check_compiled('openmmlab', (3, 12))
    setup_env.check_compiled('onedl', (3, 13))


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


@pytest.fixture
def calls(monkeypatch):
    """The commands that a set-up would run, by their words."""
    calls = []
    monkeypatch.setattr(setup_env, 'run', lambda command, **kwargs: calls.append([str(word) for word in command]))
    monkeypatch.setattr(setup_env, 'mmcv_wheel', lambda python, requirement, cache: (Path(requirement + '.whl'), ''))
    monkeypatch.setattr(setup_env, 'make_venv', lambda venv: venv.mkdir(exist_ok=True) or venv / 'bin/python')
    return calls


@pytest.mark.parametrize('stack, mmcv, compiled', [('openmmlab', 'mmcv-lite==', 'mmcv=='),
                                                   ('onedl', 'onedl-mmcv==', 'onedl-mmcv==')])
def test_operators_are_made_as_asked_and_then_left_alone(stack, mmcv, compiled, tmp_path, calls, monkeypatch):
    monkeypatch.setattr(setup_env, 'check_compiled', lambda stack: None)

    def set_up(operators):
        calls.clear()
        setup_env.set_up(stack, operators, tmp_path / '.venv', tmp_path / 'cache')
        return calls

    def of_mmcv():
        return [[word for word in call if re.match(r'(onedl-)?mmcv(-lite)?==', word)] for call in calls]

    removed, alone, rest, _ = set_up(None)
    assert removed[3:5] == ['uninstall', '--disable-pip-version-check'] and {'mmcv', 'mmcv-lite'} <= set(removed)
    assert alone[-1].startswith(mmcv) and '--no-cache-dir' in alone and of_mmcv()[2] == []
    assert any(word.startswith('torch==') for word in rest)
    assert set_up(None) == set_up('torchvision') == []

    assert set_up('compiled')[2][-1].startswith(compiled) and of_mmcv()[1] == []
    assert set_up(None) == []
    assert set_up('torchvision')[1][-1].startswith(mmcv)


def test_a_wheel_for_another_torch_is_never_used(tmp_path):
    python = Path(sys.executable)
    tag = ''.join(platform.python_version_tuple()[:2])
    fits = tmp_path / f'mmcv-9.9-torch{torch.__version__}-cp{tag}-' / 'mmcv-9.9.whl'
    fits = fits.parent.with_name(fits.parent.name + ('cpu' if not torch.cuda.is_available() else
                                                     'cu' + torch.version.cuda)) / fits.name
    for wheel in (tmp_path / f'mmcv-9.9-torch0.1-cp{tag}-cpu' / 'mmcv-9.9.whl', fits):
        wheel.parent.mkdir()
        wheel.touch()
    wheel, operators = setup_env.mmcv_wheel(python, 'mmcv==9.9', tmp_path)
    assert wheel == fits and operators.startswith("mmcv's own, compiled for CPUs ")


@pytest.mark.parametrize('stack', setup_env.STACKS)
def test_a_stack_is_pinned_whole(stack):
    names = [setup_env.STACKS[stack][0], 'torch', 'setuptools']
    assert [re.split('[<>=]', line)[0]
            for line in setup_env.pinned(setup_env.requirements_of(stack), *names)] == names


def is_installed(distribution):
    """By its name: mmengine's function of this name takes a module for one, and mmcv-lite's is mmcv."""
    return any(found.metadata['Name'] == distribution for found in distributions())


def test_what_is_installed_is_what_is_pinned():
    stack = 'onedl' if is_installed('onedl-mmcv') else 'openmmlab'
    text = '\n'.join(file.read_text() for file in setup_env.requirements_of(stack))
    if is_installed('mmcv'):  # OPERATORS=compiled
        text = text.replace('mmcv-lite==', 'mmcv==')
    exact = re.findall(r'^([\w-]+)==([\w.]+)', text, re.MULTILINE)
    assert len(exact) > 6
    assert {name: version(name).split('+')[0] for name, _ in exact} == dict(exact)


def test_progress_of_an_installation():
    log = ('Collecting torch==2.11.0\n  Downloading torch-2.11.0-cp311-cp311-x.whl (531 MB)\nCollecting wheel\n'
           '  Using cached wheel-0.46.1-py3-none-any.whl (22 kB)\n'
           '  Downloading torch-2.11.0-cp311-cp311-x.whl.metadata (29 kB)\n')
    assert setup_env.fetched('') == 'looking up versions'
    assert setup_env.fetched(log) == '2 packages, 531 MB fetched; last wheel (22 kB)'
    assert setup_env.fetched(log + 'Installing collected packages: torch') == 'unpacking'


def test_progress_of_a_build():
    assert setup_env.compiled('...\n[3/77] c++\n[34/77] c++ -O3') == '34/77 files compiled'
    assert setup_env.compiled('Collecting mmcv') == 'preparing'

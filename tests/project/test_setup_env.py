"""What set-up says on a machine that lacks something, and which mmcv wheel it takes."""
import platform
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import nullcontext
from importlib.metadata import distributions, version
from pathlib import Path

import pytest

from tool import ROOT, load

setup_env = load('setup_env')
Usage = namedtuple('Usage', 'total used free')


@pytest.mark.parametrize('version', [(2, 7), (3, 9), (3, 14)])
def test_unsupported_pythons(version):
    told = (rf'Python {version[0]}.{version[1]} is not supported: '
            r'install Python 3.10 to 3.13 and call `make setup PYTHON=python3.13`')
    with pytest.raises(setup_env.SetupError, match=told):
        setup_env.check_python(version)


@pytest.mark.parametrize('version', [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_supported_pythons(version):
    setup_env.check_python(version)


def test_mmcv_does_not_build_on_the_newest_python(tmp_path, monkeypatch):
    told = 'does not build on Python 3.13 .*leave out OPERATORS=compiled, or call `rm -rf .venv; make setup OPERATORS'
    venv = tmp_path / '.venv'
    for running, there, refused in (((3, 13), None, True), ((3, 12), None, False), ((3, 12), '3.13.0', True),
                                    ((3, 13), '3.12.1', False)):  # what is there is kept, whatever runs
        monkeypatch.setattr(sys, 'version_info', (*running, 0))
        if there:
            venv.mkdir(exist_ok=True)
            (venv / 'pyvenv.cfg').write_text(f'home = /usr/bin\nversion = {there}\n')
        with pytest.raises(setup_env.SetupError, match=told) if refused else nullcontext():
            setup_env.check_compiled('openmmlab', venv)
        setup_env.check_compiled('onedl', venv)


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
    shutil.copy(ROOT / 'tools/setup_checks.py', script.parent)
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
    monkeypatch.setattr(setup_env, 'mmcv_wheel', lambda python, requirement, *_: Path(requirement + '.whl'))
    monkeypatch.setattr(setup_env, 'compiled_for', lambda python, wheel: 'CPUs alone')
    monkeypatch.setattr(setup_env, 'asked', lambda python, code, problem: '')

    def make_venv(venv):
        (venv / 'bin').mkdir(parents=True, exist_ok=True)
        (venv / 'bin/python').touch()
    monkeypatch.setattr(setup_env, 'make_venv', make_venv)
    monkeypatch.setattr(setup_env, 'check_compiler', lambda: None)
    return calls


class Machine(setup_env.Target):
    """Stands for `setup_env.Target` of a machine that may get a GPU."""

    def __init__(self, monkeypatch):
        self.cuda, self.gpus, self.why, self.name = '', '', 'no GPU is there', 'torch9-cp311-cpu'
        monkeypatch.setattr(setup_env, 'Target', lambda python: self)


@pytest.mark.parametrize('stack, mmcv, compiled', [('openmmlab', 'mmcv-lite==', 'mmcv=='),
                                                   ('onedl', 'onedl-mmcv==', 'onedl-mmcv==')])
def test_operators_are_made_as_asked_and_then_left_alone(stack, mmcv, compiled, tmp_path, calls, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, 'check_compiled', lambda stack, venv: None)
    machine = Machine(monkeypatch)

    def set_up(operators):
        calls.clear()
        setup_env.set_up(stack, operators, tmp_path / '.venv', tmp_path / 'cache')
        return calls

    def of_mmcv():
        return [[word for word in call if re.match(r'(onedl-)?mmcv(-lite)?==', word)] for call in calls]

    removed, alone, rest, bytecode, _ = set_up(None)
    assert removed[3:5] == ['uninstall', '--disable-pip-version-check'] and {'mmcv', 'mmcv-lite'} <= set(removed)
    assert alone[-1].startswith(mmcv) and '--no-cache-dir' in alone and of_mmcv()[2] == []
    assert any(word.startswith('torch==') for word in rest) and bytecode[-1] == str(tmp_path / '.venv/lib')
    assert set_up(None) == set_up('torchvision') == []

    rest, _, removed, alone, _ = set_up('compiled')  # what is there goes when the new one is built
    assert 'mmcv' in removed and alone[-1].startswith(compiled) and of_mmcv()[0] == []
    assert "==> mmcv's operators: mmcv's own, compiled for CPUs alone (no GPU is there)\n" in capsys.readouterr().out
    assert set_up(None) == set_up('compiled') == []
    machine.cuda, machine.gpus, machine.name = '13.0', '9.0', 'torch9-cp311-cu13.0-9.0'
    assert set_up(None)[3][-1].startswith(compiled)
    assert set_up(None) == []
    machine.cuda, machine.gpus = '', ''  # a login node may have none
    assert set_up(None) == set_up('compiled') == []
    machine.cuda, machine.gpus = '13.0', '8.6'  # another node, of the same folder
    monkeypatch.delenv('TORCH_CUDA_ARCH_LIST', raising=False)
    told = r'for other GPUs .*\(8.6\): `TORCH_CUDA_ARCH_LIST="9.0;8.6" make setup` builds them for all'
    with pytest.raises(setup_env.SetupError, match=told):
        set_up(None)
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '9.0;8.6')
    assert set_up(None)[3][-1].startswith(compiled)
    (tmp_path / '.venv/bin/python').unlink()  # the Python that it was made with is gone
    assert set_up(None)
    assert set_up('torchvision')[1][-1].startswith(mmcv)


def test_a_set_up_that_breaks_off_goes_on_with_the_same_operators(tmp_path, calls, monkeypatch):
    def ends(command, **kwargs):
        raise setup_env.SetupError('no network')
    monkeypatch.setattr(setup_env, 'check_compiled', lambda stack, venv: None)
    Machine(monkeypatch)
    folders = tmp_path / '.venv', tmp_path / 'cache'
    setup_env.set_up('openmmlab', 'compiled', *folders)
    monkeypatch.setattr(setup_env, 'requirements_of', lambda stack, of=setup_env.requirements_of: of(stack)[::-1])
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(setup_env.SetupError, match='no network'):
            patch.setattr(setup_env, 'run', ends)
            setup_env.set_up('openmmlab', None, *folders)
    calls.clear()
    setup_env.set_up('openmmlab', None, *folders)
    assert 'mmcv==2.1.0.whl' in [call[-1] for call in calls]


def test_without_a_compiler_nothing_is_fetched_or_removed(tmp_path, calls, monkeypatch):
    def no_compiler():
        raise setup_env.SetupError('no C++ compiler')
    monkeypatch.setattr(setup_env, 'check_compiled', lambda stack, venv: None)
    monkeypatch.setattr(setup_env, 'check_compiler', no_compiler)
    with pytest.raises(setup_env.SetupError, match='no C'):
        setup_env.set_up('openmmlab', 'compiled', tmp_path / '.venv', tmp_path / 'cache')
    assert calls == [] and not (tmp_path / '.venv').exists()


@pytest.fixture
def python(tmp_path, monkeypatch):
    """This environment's interpreter where modules of a folder are found first: torch there says what it is told."""
    (tmp_path / 'torch/utils').mkdir(parents=True)
    (tmp_path / 'torch/utils/__init__.py').touch()
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    for name in ('FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST'):
        monkeypatch.delenv(name, raising=False)

    def of(cuda, gpus=(), nvcc=None):
        (tmp_path / 'torch/__init__.py').write_text(
            'from types import SimpleNamespace as S\n__version__ = "9.1"\n'
            f'cuda = S(device_count=lambda: {len(gpus)}, get_device_capability={list(gpus)}.__getitem__)\n'
            f'version = S(cuda={cuda!r})\n')
        (tmp_path / 'torch/utils/cpp_extension.py').write_text(f'CUDA_HOME = {nvcc and str(tmp_path / "cuda")!r}\n')
        if nvcc:
            (tmp_path / 'cuda/bin').mkdir(parents=True)
            (tmp_path / 'cuda/bin/nvcc').write_text(f'#!/bin/sh\necho Cuda compilation tools, release {nvcc}, V1\n')
            (tmp_path / 'cuda/bin/nvcc').chmod(0o755)
        return Path(sys.executable)
    return of


TAG = ''.join(platform.python_version_tuple()[:2])


A100, H100 = (8, 0), (9, 0)


@pytest.mark.parametrize('cuda, gpus, variables, name, why', [
    ('13.0', [H100], {}, 'cu13.0-9.0', None), ('13.0', [H100, A100, H100], {}, 'cu13.0-8.0_9.0', None),
    ('13.0', [], {}, 'cpu', 'no GPU is there'), (None, [H100], {}, 'cpu', 'this PyTorch has no CUDA'),
    ('13.0', [], dict(TORCH_CUDA_ARCH_LIST='9.0'), 'cpu', 'no GPU is there'),
    ('13.0', [], dict(FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST='8.0 9.0+PTX'), 'cu13.0-8.0_9.0+PTX', None)])
def test_cuda_is_built_where_it_is_of_use(cuda, gpus, variables, name, why, python, monkeypatch):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    target = setup_env.Target(python(cuda, gpus))
    assert target.name == f'torch9.1-cp{TAG}-{name}' and target.cuda == (cuda if name != 'cpu' else '')
    assert target.home == '' and why in (None, target.why)


@pytest.mark.parametrize('nvcc, fits', [('13.1', True), ('12.4', False), (None, False)])
def test_a_toolkit_of_another_cuda_is_none(nvcc, fits, python, tmp_path):
    assert setup_env.Target(python('13.0', [H100], nvcc)).home == (str(tmp_path / 'cuda') if fits else '')
    (tmp_path / 'cuda/bin/nvcc').unlink(missing_ok=True)
    assert setup_env.Target(sys.executable).home == ''


def test_cuda_without_a_gpu_asks_for_which(python, tmp_path, monkeypatch):
    monkeypatch.setenv('FORCE_CUDA', '1')
    monkeypatch.setattr(setup_env, 'check_compiler', lambda: None)
    python = python('13.0')
    with pytest.raises(setup_env.SetupError, match='for which. TORCH_CUDA_ARCH_LIST="8.0;9.0" is A100 and H100'):
        setup_env.mmcv_wheel(python, 'mmcv==9.9', tmp_path / 'cache', setup_env.Target(python))


def test_a_wheel_for_another_torch_is_never_used(tmp_path, python):
    python = python(None)
    fits = tmp_path / f'mmcv-9.9-torch9.1-cp{TAG}-cpu' / 'mmcv-9.9.whl'
    for wheel in (tmp_path / f'mmcv-9.9-torch0.1-cp{TAG}-cpu' / 'mmcv-9.9.whl', fits):
        wheel.parent.mkdir()
        wheel.touch()
    assert setup_env.mmcv_wheel(python, 'mmcv==9.9', tmp_path, setup_env.Target(python)) == fits


@pytest.mark.parametrize('nvcc', [None, '13.0'])
def test_a_gpu_without_a_toolkit_gets_that_of_pip(nvcc, tmp_path, python, monkeypatch):
    venv = tmp_path / 'venv'
    libraries = venv / 'lib/python3.11/site-packages/nvidia/cu13'
    (libraries / 'lib').mkdir(parents=True)
    target = setup_env.Target(python('13.0', [H100], nvcc))
    calls, built = [], {}

    def run(command, log=None, progress=None, env=None):
        calls.append([str(word) for word in command])
        if 'wheel' in command:
            built.update(env)
            (Path(env['TMPDIR']) / 'mmcv-9.9.whl').touch()
    monkeypatch.setattr(setup_env, 'run', run)
    monkeypatch.setattr(setup_env, 'check_compiler', lambda: None)
    wheel = setup_env.mmcv_wheel(venv / 'bin/python', 'mmcv==9.9', tmp_path / 'cache', target)
    assert wheel.exists() and built['FORCE_CUDA'] == '1'
    fetched = [word for call in calls for word in call if word.startswith('nvidia')]
    if nvcc:
        assert not fetched and built.get('CUDA_HOME') != str(libraries)
    else:
        assert 'nvidia-cuda-nvcc==13.0.*' in fetched and built['CUDA_HOME'] == str(libraries)
        assert (libraries / 'lib/libcudart.so').readlink() == Path('libcudart.so.13')


def test_pips_toolkit_needs_a_place(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, 'run', lambda command: pytest.fail('nothing is to be fetched'))
    with pytest.raises(setup_env.SetupError, match='install CUDA 12.8 and set CUDA_HOME, or leave out OPERATORS'):
        setup_env.cuda_toolkit(tmp_path / 'venv/bin/python', '12.8')


def test_what_was_built_is_asked_of_it(tmp_path, monkeypatch):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    for answer, words in (("'not available'", 'CPUs alone'), ("'13.0'", 'CPUs and CUDA 13.0')):
        (tmp_path / 'mmcv/ops.py').write_text(f'get_compiling_cuda_version = lambda: {answer}\n')
        assert setup_env.compiled_for(sys.executable, tmp_path / 'mmcv.whl') == words
    (tmp_path / 'mmcv/ops.py').write_text('raise ImportError("undefined symbol: x")\n')
    with pytest.raises(setup_env.SetupError, match=f'ImportError: undefined symbol: x.: remove {tmp_path} and try'):
        setup_env.compiled_for(sys.executable, tmp_path / 'mmcv.whl')


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

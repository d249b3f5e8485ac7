"""Runs the core tests on other versions of torch, numpy and mmengine: `python tools/test_stacks.py [oldest ...]`.

Each stack has an environment of its own, outside the clone (CMT_BACKBONES_CACHE, by default
~/.cache/cmt_backbones), made once, of 3 to 5 GB. A stack that no Python of this machine fits is left out, and named.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ['tests/stacks', 'tests/openmmlab/test_files.py', 'tests/openmmlab/test_guest.py',
         'tests/openmmlab/test_openmmlab.py', 'tests/weights/test_restricted.py']  # what needs no mmdet
# The versions, and the Pythons that have wheels of them, the first found of which is taken.
STACKS = {
    'oldest': ('torch==2.1.2 numpy==1.26.*', 'mmengine==0.10.7', (11, 10, 9)),
    'python3.8': ('torch==2.1.2 numpy==1.24.*', 'mmengine==0.9.1', (8, )),
    'torch2.4': ('torch==2.4.1 numpy==1.26.*', 'mmengine==0.10.7', (12, 11, 10, 9)),
    'torch2.6': ('torch==2.6.0 numpy==1.26.*', 'mmengine==0.10.7', (12, 11, 10)),
    'newest': ('torch numpy>=2', 'mmengine==0.10.7', (13, 12, 11, 10)),
}
# mmengine's own requirements, but OpenCV without windows; and what runs the tests.
BESIDE = ('addict matplotlib pyyaml rich termcolor yapf opencv-python-headless setuptools<81 safetensors pytest '
          'pytest-timeout hypothesis')


def find_python(minors):
    """A Python 3 of one of these minor versions: this one, or one of the PATH or of pyenv."""
    folders = [Path(folder) for folder in os.environ.get('PATH', '').split(os.pathsep)]
    folders += Path(os.environ.get('PYENV_ROOT') or Path.home() / '.pyenv').glob('versions/*/bin')
    for minor in minors:
        for python in [Path(sys.executable), *(folder / f'python3.{minor}' for folder in folders)]:
            if python.is_file() and shutil.which(str(python)):
                found = subprocess.run([str(python), '-c', 'import ensurepip, sys; print(sys.version_info[1])'],
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                if found.stdout.strip() == str(minor):
                    return python
    return None


def make(python, versions, mmengine, cache):
    """The interpreter of an environment with these versions, made where it is missing."""
    folder = cache / hashlib.sha256(' '.join([str(python), versions, mmengine, BESIDE]).encode()).hexdigest()[:12]
    inner = folder / 'bin/python'
    if not (folder / 'complete').exists():
        shutil.rmtree(str(folder), ignore_errors=True)
        subprocess.check_call([str(python), '-m', 'venv', str(folder)])
        pip = [str(inner), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
        subprocess.check_call(pip + versions.split() + BESIDE.split())
        subprocess.check_call(pip + ['--no-deps', mmengine])
        (folder / 'complete').touch()
    return inner


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('stacks', nargs='*', help=f'of {", ".join(STACKS)}; all by default')
    stacks = parser.parse_args().stacks or list(STACKS)
    if set(stacks) - set(STACKS):
        parser.error(f'stacks are {", ".join(STACKS)}')
    cache = Path(os.environ.get('CMT_BACKBONES_CACHE') or Path.home() / '.cache' / 'cmt_backbones') / 'stacks'
    failed = []
    for name in stacks:
        versions, mmengine, minors = STACKS[name]
        python = find_python(minors)
        if python is None:
            print(f'==> {name}: left out, for it needs Python {" or ".join(f"3.{minor}" for minor in minors)}')
            continue
        print(f'==> {name}: {versions} {mmengine}, {python}', flush=True)
        inner = make(python, versions, mmengine, cache)
        failed += [name] * bool(subprocess.call([str(inner), '-m', 'pytest', *TESTS], cwd=str(ROOT),
                                                env=dict(os.environ, PYTHONPATH=str(ROOT))))
    sys.exit(f'failed: {", ".join(failed)}' if failed else 0)


if __name__ == '__main__':
    main()

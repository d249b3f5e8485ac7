"""Makes the virtual environment of this project: `python3 tools/setup_env.py [--stack onedl]`.

Installs the versions of requirements.txt and requirements/STACK.txt into .venv (.venv-onedl
for the onedl stack), builds mmcv where no wheel of it fits, and installs this package in
editable mode. A second call with nothing changed returns at once. Needs the standard library
alone, since it runs before anything is installed, and syntax that old Pythons parse, since it
tells them that they are too old.

The mmcv wheel is kept outside the clone (CMT_BACKBONES_CACHE, by default
~/.cache/cmt_backbones) in a folder named after everything that its binary depends on.
pip's own cache knows a built wheel by mmcv's version alone and would hand out one whose
ABI belongs to another torch, so it is never used here.
"""
import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 10), (3, 12))
# The distribution that provides the module mmcv, and the folder of the environment.
STACKS = {'openmmlab': ('mmcv', '.venv'), 'onedl': ('onedl-mmcv', '.venv-onedl')}
DISK_GB = {'environment': 8, 'mmcv': 2}  # measured: 5.5 GB and 1 GB, with room to spare


class SetupError(Exception):
    """What is missing on this machine and what to do about it, in one line."""


def check_python(version=None):
    version = tuple(version or sys.version_info)[:2]
    low, high = SUPPORTED
    if not low <= version <= high:
        raise SetupError(
            'Python %d.%d is not supported: install Python %d.%d to %d.%d and call '
            '`make PYTHON=python%d.%d`.' % (version + low + high + high))


def check_disk(path, need_gb, usage=shutil.disk_usage):
    while not path.exists():
        path = path.parent
    free_gb = usage(str(path)).free / 1e9
    if free_gb < need_gb:
        raise SetupError('%.1f GB are free at %s and %d GB are needed: free %.1f GB there.'
                         % (free_gb, path, need_gb, need_gb - free_gb))


def check_compiler(which=shutil.which, include=None):
    if not which(os.environ.get('CXX', 'g++')):
        raise SetupError('no C++ compiler (%s) is on the PATH to build mmcv with: install one, '
                         'for example `apt-get install g++`.' % os.environ.get('CXX', 'g++'))
    include = Path(include or sysconfig.get_path('include'))
    if not (include / 'Python.h').exists():
        raise SetupError('the headers of Python (%s) are missing and mmcv cannot be built: '
                         'install them, for example `apt-get install python3-dev`.'
                         % (include / 'Python.h'))


def run(command, log=None, progress=None, **kwargs):
    """Runs a command. With a log, its output goes there and `progress(text)` is shown instead."""
    if log is None:
        if subprocess.run([str(c) for c in command], **kwargs).returncode:
            raise SetupError('`%s` failed; what it printed is above.' % ' '.join(map(str, command)))
        return
    start = shown = time.time()
    with open(str(log), 'w') as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out,
                                   stderr=subprocess.STDOUT, **kwargs)
        while process.poll() is None:
            time.sleep(1)
            if time.time() - shown > 20:
                shown = time.time()
                print('    %3d s  %s' % (shown - start, progress(log.read_text(errors='replace'))),
                      flush=True)
    if process.returncode:
        print(log.read_text(errors='replace')[-3000:])
        raise SetupError('`%s` failed; the whole output is in %s.'
                         % (' '.join(map(str, command)), log))


def requirements_of(stack):
    """The two files that pin the versions of a stack."""
    return [ROOT / 'requirements.txt', ROOT / 'requirements' / (stack + '.txt')]


def pinned(requirements, *names):
    """The lines of some requirements files for these distributions, in this order."""
    text = '\n'.join(file.read_text() for file in requirements)
    lines = [line.split('#')[0].strip() for line in text.splitlines()]
    by_name = {re.split('[<>=]', line)[0]: line for line in lines if line}
    return [by_name[name] for name in names]


def make_venv(venv):
    if not (venv / 'bin' / 'python').exists():
        try:
            import ensurepip  # noqa: F401  (Debian ships Python without it)
        except ImportError:
            raise SetupError('this Python has no ensurepip, so it cannot make a virtual '
                             'environment: `apt-get install python3-venv`.') from None
        run([sys.executable, '-m', 'venv', venv])
    return venv / 'bin' / 'python'


def mmcv_wheel(python, requirement, cache):
    """The wheel of mmcv for the torch and Python of this environment, built where missing.

    Args:
        python (Path): The environment's interpreter; torch is installed there.
        requirement (str): For example ``mmcv==2.1.0``.
        cache (Path): Folder in which wheels are kept.

    Returns:
        Path: The wheel.
    """
    # CUDA operators only where they can be compiled and used.
    probe = ('import sys, torch; from torch.utils.cpp_extension import CUDA_HOME; '
             'cuda = "cu" + torch.version.cuda if CUDA_HOME and torch.cuda.is_available() else "cpu"; '
             'print("torch%s-cp%d%d-%s" % (torch.__version__, *sys.version_info[:2], cuda))')
    built_for = subprocess.run([str(python), '-c', probe], check=True, text=True,
                               stdout=subprocess.PIPE).stdout.strip()
    folder = cache / ('%s-%s' % (requirement.replace('==', '-'), built_for))
    folder.mkdir(parents=True, exist_ok=True)
    with open(str(folder / '.lock'), 'w') as lock:  # two clones may be set up at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        wheels = list(folder.glob('*.whl'))
        if not wheels:
            check_compiler()
            check_disk(folder, DISK_GB['mmcv'])
            print('==> building %s for %s (about 10 minutes on 2 cores, once a machine)'
                  % (requirement, built_for), flush=True)
            scratch = folder / 'build'
            shutil.rmtree(str(scratch), ignore_errors=True)
            scratch.mkdir()
            env = dict(os.environ, MMCV_WITH_OPS='1', FORCE_CUDA='0' if built_for.endswith('cpu') else '1',
                       PATH='%s:%s' % (python.parent, os.environ['PATH']), TMPDIR=str(scratch))
            env.setdefault('MAX_JOBS', str(os.cpu_count()))
            name = requirement.split('=')[0]
            run([python, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-build-isolation', '--no-deps',
                 '--no-binary', name, requirement, '-w', scratch],
                log=folder / 'build.log', progress=compiled, env=env)
            for wheel in scratch.glob('*.whl'):
                os.replace(str(wheel), str(folder / wheel.name))  # complete or absent
            shutil.rmtree(str(scratch))
            wheels = list(folder.glob('*.whl'))
        return wheels[0]


def compiled(log):
    """How far a build is, read off ninja's `[34/77]`."""
    steps = re.findall(r'\[(\d+/\d+)\]', log)
    return '%s files compiled' % steps[-1] if steps else 'preparing'


def set_up(stack, venv, cache):
    mmcv_name = STACKS[stack][0]
    requirements = requirements_of(stack)
    files = requirements + [ROOT / 'setup.py', Path(__file__)]
    fingerprint = hashlib.sha256(b''.join(f.read_bytes() for f in files)).hexdigest()
    stamp = venv / 'set_up_from'
    if stamp.exists() and stamp.read_text() == fingerprint:
        return
    check_disk(venv, DISK_GB['environment'] if not stamp.exists() else 1)
    print('==> installing the %s stack into %s (5 GB, a few minutes)' % (stack, venv), flush=True)
    python = make_venv(venv)
    pip = [python, '-m', 'pip', 'install', '--disable-pip-version-check', '--quiet']
    mmcv, = pinned(requirements, mmcv_name)
    run(pip + pinned(requirements, 'setuptools', 'wheel', 'ninja', 'packaging', 'torch', 'numpy'))
    run(pip + ['--no-deps', mmcv_wheel(python, mmcv, cache)])
    run(pip + ['--requirement=%s' % file for file in requirements])
    run(pip + ['--no-deps', '--no-build-isolation', '--editable', ROOT])
    stamp.write_text(fingerprint)
    print('==> ready: %s' % python, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stack', choices=sorted(STACKS), default='openmmlab',
                        help="OpenMMLab's packages or the onedl forks of them (default: %(default)s)")
    parser.add_argument('--venv', type=Path, help='default: .venv, or .venv-onedl')
    args = parser.parse_args()
    venv = args.venv or ROOT / STACKS[args.stack][1]
    cache = Path(os.environ.get('CMT_BACKBONES_CACHE') or Path.home() / '.cache' / 'cmt_backbones')
    try:
        check_python()
        set_up(args.stack, venv.absolute(), cache)
    except SetupError as error:
        sys.exit('set-up: %s' % error)


if __name__ == '__main__':
    main()

"""What tools/setup_env.py asks of a machine before it changes anything, and how it runs commands.

Needs the standard library alone, and syntax that old Pythons parse, since it tells them that they are too old.
"""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

SUPPORTED = ((3, 10), (3, 13))


class SetupError(Exception):
    """What is missing on this machine and what to do about it, in one line."""


def check_python(version=None):
    version = tuple(version or sys.version_info)[:2]
    low, high = SUPPORTED
    if not low <= version <= high:
        raise SetupError('Python %d.%d is not supported: install Python %d.%d to %d.%d and call '
                         '`make setup PYTHON=python%d.%d`.' % (version + low + high + high))


def check_compiled(stack, venv):
    there = venv / 'pyvenv.cfg'
    made = there.exists() and re.search(r'version = (\d+)\.(\d+)', there.read_text())
    version = tuple(map(int, made.groups())) if made else sys.version_info[:2]
    if stack == 'openmmlab' and version > (3, 12):
        raise SetupError(
            'mmcv 2.1.0 does not build on Python %d.%d (its setup.py reads its version by way of locals()): leave out '
            'OPERATORS=compiled, or call `rm -rf %s; make setup OPERATORS=compiled PYTHON=python3.12`.'
            % (version + (venv.name,)))


def check_cache(cache):
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / '.lock').touch()
    except OSError as error:
        raise SetupError('%s: compiled operators cannot be kept there; set CMT_BACKBONES_CACHE.' % error) from None


def check_disk(path, need_gb, usage=shutil.disk_usage):
    while not path.exists():
        path = path.parent
    free_gb = usage(str(path)).free / 1e9
    if free_gb < need_gb:
        raise SetupError('%.1f GB are free at %s and %d GB are needed: free %.1f GB there.'
                         % (free_gb, path, need_gb, need_gb - free_gb))


def check_compiler(which=shutil.which, include=None):
    compiler = os.environ.get('CXX', 'g++')
    if not which(compiler):
        raise SetupError('no C++ compiler (%s) is on the PATH to build mmcv with: install one, for example '
                         '`apt-get install g++`.' % compiler)
    include = Path(include or sysconfig.get_path('include'))
    if not (include / 'Python.h').exists():
        raise SetupError('the headers of Python (%s) are missing and mmcv cannot be built: install them, for '
                         'example `apt-get install python3-dev`.' % (include / 'Python.h'))


def run(command, log=None, progress=None, **kwargs):
    """Runs a command. With a log, its output goes there and `progress(text)` is shown instead."""
    if log is None:
        if subprocess.run([str(c) for c in command], **kwargs).returncode:
            raise SetupError('`%s` failed; what it printed is above.' % ' '.join(map(str, command)))
        return
    start = shown = time.time()
    with open(str(log), 'w') as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT, **kwargs)
        while process.poll() is None:
            time.sleep(1)
            if time.time() - shown > 20:
                shown = time.time()
                print('    %3d s  %s' % (shown - start, progress(log.read_text(errors='replace'))), flush=True)
    if process.returncode:
        print(log.read_text(errors='replace')[-3000:])
        raise SetupError('`%s` failed; the whole output is in %s.' % (' '.join(map(str, command)), log))


def asked(python, code, problem):
    """What Python code prints in an environment; where it fails, a SetupError with its last line in `problem`."""
    found = subprocess.run([str(python), '-c', code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if found.returncode:
        raise SetupError(problem % found.stderr.strip().split('\n')[-1])
    return found.stdout

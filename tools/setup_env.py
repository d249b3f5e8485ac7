"""Makes the virtual environment of this project: `python3 tools/setup_env.py [--stack onedl] [--operators compiled]`.

Installs the versions of requirements.txt and requirements/STACK.txt into .venv (.venv-onedl
for the onedl stack) and this package in editable mode. No compiler is needed: mmcv's operators
are torchvision's (cmt_backbones/openmmlab/operators). `--operators compiled` builds mmcv's own
instead. A second call with nothing changed returns at once and keeps the operators that are
there. Needs the standard library alone, since it runs before anything is installed, and syntax
that old Pythons parse, since it tells them that they are too old.

A compiled mmcv is kept outside the clone (CMT_BACKBONES_CACHE, by default
~/.cache/cmt_backbones) in a folder named after everything that its binary depends on.
pip's own cache knows a built wheel by mmcv's version alone and would hand out one whose
ABI belongs to another torch, so it is never used for mmcv.
"""
import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setup_checks import (
    SetupError,
    asked,
    check_cache,
    check_compiled,
    check_compiler,
    check_disk,
    check_python,
    run,
)

ROOT = Path(__file__).resolve().parent.parent
# The distributions that provide the module mmcv without operators and with them, and the folder of the
# environment. onedl-mmcv's sdist is built without where it sees no torch, as in pip's own isolated build.
STACKS = {'openmmlab': ('mmcv-lite', 'mmcv', '.venv'), 'onedl': ('onedl-mmcv', 'onedl-mmcv', '.venv-onedl')}
DISK_GB = {'environment': 8, 'mmcv': 2}  # measured: 6.5 GB and 1 GB, with room to spare


def requirements_of(stack):
    """The two files that pin the versions of a stack."""
    return [ROOT / 'requirements.txt', ROOT / 'requirements' / (stack + '.txt')]


def all_of(requirements):
    """The lines of some requirements files."""
    lines = '\n'.join(file.read_text() for file in requirements).splitlines()
    return [line for line in (line.split('#')[0].strip() for line in lines) if line]


def pinned(requirements, *names):
    """The lines of some requirements files for these distributions, in this order."""
    by_name = {re.split('[<>=]', line)[0]: line for line in all_of(requirements)}
    return [by_name[name] for name in names]


def make_venv(venv):
    if not (venv / 'bin' / 'python').exists():  # nor where the Python that it was made with is gone
        try:
            import ensurepip  # noqa: F401  (Debian ships Python without it)
        except ImportError:
            raise SetupError('this Python has no ensurepip to make an environment with: '
                             '`apt-get install python3-venv`.') from None
        run([sys.executable, '-m', 'venv', *['--clear'] * (venv / 'pyvenv.cfg').exists(), venv])


class Target:
    """What a build of mmcv depends on, asked of an environment with torch.

    Attributes:
        cuda (str): The version of CUDA where there is a GPU or FORCE_CUDA=1 (a login node of a cluster), or empty,
            and `why` the reason.
        gpus (str): Their compute capabilities, such as ``9.0``, or TORCH_CUDA_ARCH_LIST.
        home (str): The toolkit of this CUDA on this machine, or empty.
        name (str): All of it, such as ``torch2.11.0+cu130-cp311-cu13.0-9.0``, or ``...-cpu``.
    """

    PROBE = ('import sys, torch; from torch.utils.cpp_extension import CUDA_HOME; c = torch.cuda; '
             'print(torch.__version__, "cp%d%d" % sys.version_info[:2], torch.version.cuda or "", CUDA_HOME or "", '
             '*sorted({"%d.%d" % c.get_device_capability(i) for i in range(c.device_count())}), sep="\\n")')

    def __init__(self, python):
        torch, tag, cuda, self.home, *gpus = subprocess.check_output(
            [str(python), '-c', self.PROBE], text=True, stderr=subprocess.DEVNULL).splitlines()
        wanted = gpus or os.environ.get('FORCE_CUDA') == '1'
        self.cuda = cuda if wanted else ''
        self.why = 'this PyTorch has no CUDA' if wanted else 'no GPU is there'
        self.gpus = os.environ.get('TORCH_CUDA_ARCH_LIST', ';'.join(gpus)).replace(' ', ';')
        if 'release %s.' % cuda.split('.')[0] not in subprocess.getoutput(self.home + '/bin/nvcc --version'):
            self.home = ''  # another CUDA, or its libraries without the compiler
        of = ['cu' + self.cuda, self.gpus.replace(';', '_')] if self.cuda else ['cpu']
        self.name = '-'.join(['torch' + torch, tag, *of])

    def served_by(self, name):
        """Whether operators that were built for the target of this name run on all GPUs of this one.

        Raises:
            SetupError: They are for other GPUs. Machines that share a folder would build them in turns.
        """
        built = re.findall(r'\d+\.\d', name.split('-')[-1])
        missing = [gpu for gpu in re.findall(r'\d+\.\d', self.gpus if self.cuda else '')
                   if not any(gpu[:-1] == of[:-1] and gpu >= of for of in built)]  # 8.6 runs what is for 8.0
        if built and missing and 'TORCH_CUDA_ARCH_LIST' not in os.environ:
            raise SetupError("mmcv's operators are for other GPUs than those of this machine (%s): "
                             '`TORCH_CUDA_ARCH_LIST="%s" make setup` builds them for all.'
                             % (', '.join(missing), ';'.join(built + missing)))
        return not self.cuda or built and not missing


def cuda_toolkit(python, cuda):
    """Installs pip's compiler of CUDA, such as 13.0, beside the libraries that torch brought; returns CUDA_HOME."""
    major = cuda.split('.')[0]
    homes = list(python.parent.parent.glob('lib/python3*/site-packages/nvidia/cu' + major))
    if not homes:  # before CUDA 13 every library has a folder of its own
        raise SetupError("no CUDA toolkit is here, and beside this PyTorch's libraries is no place for that of pip: "
                         'install CUDA %s and set CUDA_HOME, or leave out OPERATORS=compiled.' % cuda)
    print('==> no toolkit of CUDA %s is here (CUDA_HOME, nvcc): installing that of pip' % cuda, flush=True)
    run([python, '-m', 'pip', 'install', '--disable-pip-version-check', '--quiet', *[
        'nvidia-%s==%s.*' % (part, cuda) for part in ('cuda-nvcc', 'nvvm', 'cuda-crt', 'cuda-cccl')]])
    library = homes[0] / 'lib' / 'libcudart.so'  # the name that is linked against
    if not library.exists():
        library.symlink_to('libcudart.so.' + major)
    return homes[0]


def mmcv_wheel(python, requirement, cache, target):
    """The wheel of a requirement such as ``mmcv==2.1.0`` for an environment, from the cache or built into it."""
    folder = cache / ('%s-%s' % (requirement.replace('==', '-'), target.name))
    folder.mkdir(parents=True, exist_ok=True)
    with open(str(folder / '.lock'), 'w') as lock:  # two clones may be set up at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob('*.whl')):
            check_compiler()
            check_disk(folder, DISK_GB['mmcv'])
            if target.cuda and not target.gpus:
                raise SetupError('FORCE_CUDA=1 and no GPU: for which? TORCH_CUDA_ARCH_LIST="8.0;9.0" is A100 and H100.')
            scratch = folder / 'build'
            shutil.rmtree(str(scratch), ignore_errors=True)
            scratch.mkdir()
            env = dict(os.environ, MMCV_WITH_OPS='1', FORCE_CUDA='1' if target.cuda else '0', TMPDIR=str(scratch),
                       MAX_JOBS=os.environ.get('MAX_JOBS', str(os.cpu_count())),
                       PATH='%s:%s' % (python.parent, os.environ['PATH']))
            if target.cuda and not target.home:
                env['CUDA_HOME'] = str(cuda_toolkit(python, target.cuda))
            print('==> building %s for %s (once a machine; on 2 cores %s minutes)'
                  % (requirement, target.name, 'some 30' if target.cuda else '10'), flush=True)
            run([python, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-build-isolation', '--no-deps',
                 '--no-binary', requirement.split('=')[0], requirement, '-w', scratch],
                log=folder / 'build.log', progress=compiled, env=env)
            for wheel in scratch.glob('*.whl'):
                os.replace(str(wheel), str(folder / wheel.name))  # complete or absent
            shutil.rmtree(str(scratch))
        return next(folder.glob('*.whl'))


def compiled_for(python, wheel):
    """What the operators of the mmcv that was installed from a wheel were built for, in words; it is imported."""
    printed = asked(python, 'import mmcv.ops; print(mmcv.ops.get_compiling_cuda_version())',
                    'the mmcv that was built cannot be imported (%%s): remove %s and try again.' % wheel.parent)
    cuda = printed.split('\n')[-2]
    return 'CPUs alone' if cuda == 'not available' else 'CPUs and CUDA ' + cuda


def compiled(log):
    """How far a build is, read off ninja's `[34/77]`."""
    steps = re.findall(r'\[(\d+/\d+)\]', log)
    return '%s files compiled' % steps[-1] if steps else 'preparing'


def fetched(log):
    """How far an installation is, read off pip's `Downloading torch-2.11.0-cp311.whl (530.7 MB)`."""
    found = re.findall(r'(Downloading|Using cached) (\S+?)-\d\S*(?<!metadata) \(([\d.]+) ([kMG])B\)', log)
    if 'Installing collected packages' in log or not found:
        return 'unpacking' if found else 'looking up versions'
    sizes = [float(size) / dict(k=1e3, M=1, G=1e-3)[unit] for how, _, size, unit in found if how == 'Downloading']
    name, size, unit = found[-1][1:]
    return '%d packages, %d MB fetched; last %s (%s %sB)' % (len(found), sum(sizes), name.split('/')[-1], size, unit)


def set_up(stack, operators, venv, cache):
    """Makes the environment, or leaves it alone where nothing changed.

    `operators` is ``torchvision`` or ``compiled``; None keeps what is there. `cache` is the folder of compiled wheels.
    """
    without, with_operators, _ = STACKS[stack]
    requirements = requirements_of(stack)
    files = requirements + [ROOT / 'setup.py', Path(__file__)]
    # With the path, which a copy of a clone and its environment has of another: it would import that one's package.
    fingerprint = hashlib.sha256(str(ROOT).encode() + b''.join(f.read_bytes() for f in files)).hexdigest()
    stamp = venv / 'set_up_from'
    before = stamp.read_text().split() if stamp.exists() else []
    operators = operators or (before[1] if before[1:] else 'torchvision')
    python = venv / 'bin' / 'python'
    if before[:2] == [fingerprint, operators] and python.exists() and (
            operators == 'torchvision' or Target(python).served_by(before[-1])):
        return
    mmcv, = pinned(requirements, without)
    to_build = mmcv.replace(without, with_operators)
    if operators == 'compiled':
        check_compiled(stack, venv)
        check_cache(cache)
        # Told before gigabytes are fetched; whether a wheel of the cache fits is known when torch is there.
        if not list(cache.glob(to_build.replace('==', '-') + '-*/*.whl')):
            check_compiler()
    check_disk(venv, 1 if before and python.exists() else DISK_GB['environment'])
    print('==> installing the %s stack into %s\n'
          "    6.5 GB on disk: PyTorch 1.2, its CUDA libraries 2.8 (the registry's PyTorch does not import without,\n"
          '    GPU or not), Triton 0.7, the rest 1.8. What pip has in its cache is not fetched again.'
          % (stack, venv), flush=True)
    make_venv(venv)
    stamp.write_text('incomplete ' + (before[1] if before[1:] else operators))  # the next call goes on with these
    log = venv / 'set_up.log'

    def pip(command, *arguments):
        run([python, '-m', 'pip', command, '--disable-pip-version-check', *arguments], log=log, progress=fetched)

    def install_mmcv(what):
        pip('uninstall', '--yes', 'mmcv', 'mmcv-lite', 'onedl-mmcv')  # which own the same files
        pip('install', '--no-cache-dir', '--no-deps', what)

    said, words = "torchvision's", [fingerprint, operators]
    if operators == 'torchvision':
        install_mmcv(mmcv)
    pip('install', '--no-compile', '--progress-bar=off', *[line for line in all_of(requirements) if line != mmcv])
    asked(python, 'import cv2', 'OpenCV cannot be imported (%s): install the libraries of the system that it takes, '
          'for example `apt-get install libgl1 libglib2.0-0`, and call `make setup` again.')
    # By all cores. In containers where Python may not write bytecode, commands would take twice as long to start.
    run([python, '-Wignore', '-c', 'import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2, workers=0)',
         venv / 'lib'])
    if operators == 'compiled':
        target = Target(python)
        wheel = mmcv_wheel(python, to_build, cache, target)
        install_mmcv(wheel)
        said = "mmcv's own, compiled for " + compiled_for(python, wheel) + ('' if target.cuda else ' (%s)' % target.why)
        words.append(target.name)
    pip('install', '--no-deps', '--no-build-isolation', '--editable', ROOT)
    stamp.write_text(' '.join(words))
    print("==> mmcv's operators: %s\n==> ready: %s" % (said, python), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stack', choices=sorted(STACKS), default='openmmlab',
                        help="OpenMMLab's packages or the onedl forks of them (default: %(default)s)")
    parser.add_argument('--operators', choices=['torchvision', 'compiled'],
                        help="torchvision's, or mmcv's own, built here (default: what is there, or torchvision's)")
    parser.add_argument('--venv', type=Path, help='default: .venv, or .venv-onedl')
    args = parser.parse_args()
    venv = args.venv or ROOT / STACKS[args.stack][2]
    cache = Path(os.environ.get('CMT_BACKBONES_CACHE') or os.path.expanduser('~/.cache/cmt_backbones'))
    try:
        check_python()
        set_up(args.stack, args.operators, venv.absolute(), cache)
    except (SetupError, OSError) as error:
        sys.exit('set-up: %s' % error)


if __name__ == '__main__':
    main()

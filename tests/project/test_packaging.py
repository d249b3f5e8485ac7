"""Installations from an sdist, a wheel, a git URL and a checkout: what they hold, and that they work."""
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import cmt_backbones
from tool import ROOT

PIP = [sys.executable, '-m', 'pip']
OFFLINE = ['--quiet', '--no-deps', '--no-index']
CONFIG = 'cmt_backbones::mmdet/retinanet_cmt_s_1x.py'


def call(*command, cwd='/', **env):
    """What a command prints, run where the repository's own package is not found; it must succeed."""
    kept = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=300, cwd=cwd, env={**kept, **env})
    assert done.returncode == 0, done.stdout
    return done.stdout


def left_behind(folder, names):
    """What a copy of the repository does without: what git ignores, and git's own."""
    kept = {'.gitignore', '.pre-commit-config.yaml'}
    at_root = {'build', 'data', 'dist', 'work_dirs'} if Path(folder) == ROOT else set()
    return [name for name in names if name.startswith('.') and name not in kept or name in at_root
            or name == '__pycache__' or name.endswith('.egg-info')]


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return shutil.copytree(ROOT, tmp_path_factory.mktemp('tree') / 'tree', ignore=left_behind)


def modules():
    """The files of the package, from the root of the repository."""
    return [str(path.relative_to(ROOT)) for path in (ROOT / 'cmt_backbones').rglob('*.py') if '.mim' not in path.parts]


def build(kind, tree, folder, before='pass'):
    """The file that setuptools builds of a tree: 'sdist', 'wheel' or 'editable'."""
    code = (f'import os, sys; from setuptools import build_meta; os.chdir(sys.argv[1]); {before}; '
            f'print(build_meta.build_{kind}(sys.argv[2]))')
    return folder / call(sys.executable, '-c', code, tree, folder).split()[-1]


@pytest.fixture(scope='module')
def sdist(tree, tmp_path_factory):
    return build('sdist', tree, tmp_path_factory.mktemp('sdist'))


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    """Built from a source distribution, so that both hold what they should."""
    folder = tmp_path_factory.mktemp('wheel')
    call(*PIP, 'wheel', '--no-build-isolation', '--wheel-dir', folder, *OFFLINE, sdist)
    return next(folder.glob('*.whl'))


def closure(*names):
    """The installed distributions that these need."""
    found, left = {}, list(names)
    while left:
        distribution = metadata.distribution(left.pop())
        if distribution.name in found:
            continue
        found[distribution.name] = distribution
        for line in distribution.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
                left.append(requirement.name)
    return found


def link(distributions, site):
    """Puts installed distributions into another folder of packages."""
    for distribution in distributions.values():
        for name in {file.parts[0] for file in distribution.files} - {'..', '__pycache__'}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))


@pytest.fixture(scope='module')
def bare(wheel, tmp_path_factory):
    """The folder of packages of an environment with torch, mmengine and our wheel."""
    folder = tmp_path_factory.mktemp('bare')
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path('purelib', vars=dict(base=str(folder))))
    mmengine, = set(metadata.packages_distributions()['mmengine'])
    # onedl-mmengine 0.10.12 imports cv2 without requiring it.
    link(closure('torch', mmengine, 'opencv-python'), site)
    call(*PIP, 'install', '--target', site, *OFFLINE, wheel)
    return folder


def test_the_wheel_holds_configs_tools_and_index(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [path.relative_to(ROOT) for folder in ('configs', 'tools')
               for path in (ROOT / folder).rglob('*') if path.is_file() and path.suffix != '.pyc']
    assert len(sources) > 80
    assert {f'cmt_backbones/.mim/{path}' for path in [*sources, 'model-index.yml']} <= names
    assert 'cmt_backbones/py.typed' in names
    assert {f'cmt_backbones/report/page.{kind}' for kind in ('html', 'css', 'js')} <= names
    assert not [name for name in names if name.startswith(('tests', 'benchmarks', 'configs'))]
    packages = {Path(name).parent for name in modules()}
    assert len(packages) > 5 and {f'{package}/__init__.py' for package in packages} <= names
    assert any(name.endswith('LICENSE') for name in names)


def test_metadata(wheel):
    info = email.message_from_string(next(
        zipfile.ZipFile(wheel).read(name).decode() for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith('.dist-info/METADATA')))
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert info['Author'] == info['Maintainer'] == citation['authors'][0]['name']
    assert info['Requires-Python'] == '>=3.8'
    assert all('extra ==' in name for name in info.get_all('Requires-Dist'))  # nothing of a host's is replaced
    pythons = {text.split(' :: ')[-1] for text in info.get_all('Classifier') if ' :: Python :: ' in text}
    assert pythons == {f'3.{minor}' for minor in range(8, 14)}
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    shown = info.get_payload()
    targets = re.findall(r'\]\(([^)]*)\)', shown)
    assert targets and all(target.startswith('https://') for target in targets)
    text_of_links = re.findall(r'(?<!!)\[([^\]]*)\]\((?!http)', readme)
    assert len(text_of_links) > 10 and all(text in shown for text in text_of_links)
    assert all(line in shown for line in readme.splitlines() if '](' not in line)


def test_the_sdist_holds_all_and_its_tests_run(sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
        archive.extractall(tmp_path)
    folders = ('benchmarks', 'cmt_backbones', 'configs', 'docs', 'requirements', 'tests', 'tools')
    files = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob('*') if path.is_file()
             and path.suffix not in ('.pyc', '.tmp') and not {'__pycache__', '.mim', '.hypothesis'} & {*path.parts}}
    assert len(files) > 250 and files <= names
    unpacked = next(tmp_path.iterdir())
    call(sys.executable, '-m', 'pytest', 'tests/models/test_cmt.py', 'tests/project/test_repository.py',
         '-k', 'cmt_ti_160 or test_repository', PYTHONPATH=str(unpacked), cwd=unpacked)


def test_pip_installs_from_a_git_url(tree, tmp_path):
    git = ['git', '-c', 'user.name=x', '-c', 'user.email=x@localhost', '-C', tree]
    for command in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'x']):
        call(*git, *command)
    call(*PIP, 'install', '--target', tmp_path, '--no-build-isolation', *OFFLINE, f'git+file://{tree}')
    assert all((tmp_path / module).is_file() for module in modules())
    assert (tmp_path / 'cmt_backbones/.mim/configs/mmdet/retinanet_cmt_s_1x.py').is_file()


@pytest.mark.parametrize('links', [True, False])
def test_an_editable_installation_with_links_and_without(links, tree, tmp_path):
    """Windows lets few users make links: configs are found as well by copies."""
    refuse = "os.symlink = lambda *args, **kwargs: (_ for _ in ()).throw(OSError('no right'))"
    build('editable', tree, tmp_path, 'pass' if links else refuse)
    mim = tree / 'cmt_backbones/.mim'
    assert {(path.name, path.is_symlink()) for path in mim.iterdir()} == {
        (name, links) for name in ('configs', 'tools', 'model-index.yml')}
    code = f'import cmt_backbones; from mmengine.hub import get_config; print(get_config({CONFIG!r}).filename)'
    assert call(sys.executable, '-W', 'ignore', '-c', code, PYTHONPATH=str(tree)).splitlines()[-1] == str(
        mim / 'configs/mmdet/retinanet_cmt_s_1x.py')


def test_it_works_with_torch_and_mmengine_alone(bare):
    code = """
import sys, torch, mmengine, cmt_backbones
from mmengine.registry import MODELS
for name in ('CMT', 'ConvNeXt'):
    backbone = MODELS.build(dict(type=name, arch='tiny')).eval()
    print(name, [tuple(out.shape) for out in backbone(torch.zeros(1, 3, 64, 96))])
print('from', cmt_backbones.__file__)
others = {'mmcv', 'mmdet', 'mmseg', 'timm', 'torchvision'}
print('beside', others & {name.partition('.')[0] for name in sys.modules})
"""
    said = call(bare / 'bin/python', '-I', '-c', code)
    assert 'CMT [(1, 46, 16, 24), (1, 92, 8, 12), (1, 184, 4, 6), (1, 368, 2, 3)]' in said
    assert 'ConvNeXt [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]' in said
    assert re.search(rf'from {re.escape(str(bare))}.*cmt_backbones/__init__.py', said)
    assert 'beside set()' in said


def test_configs_of_the_wheel_by_name(wheel, tmp_path):
    """In the environment at hand, with mmdet: by mmengine's get_config and as a base."""
    site = tmp_path / 'site'
    call(*PIP, 'install', '--target', site, *OFFLINE, wheel)
    (tmp_path / 'mine.py').write_text(f'_base_ = {CONFIG!r}\nmodel = dict(bbox_head=dict(num_classes=3))\n')
    code = f"""
import cmt_backbones, mmengine, torch
from mmengine.hub import get_config
from mmengine.registry import HOOKS, MODELS, init_default_scope
print('from', cmt_backbones.__file__, get_config({CONFIG!r}).filename)
cfg = mmengine.Config.fromfile({str(tmp_path / 'mine.py')!r})
init_default_scope(cfg.default_scope)
with torch.device('meta'):
    model = MODELS.build(cfg.model)
print(type(model).__name__, type(model.backbone).__name__, model.bbox_head.num_classes)
print(type(HOOKS.build(cfg.custom_hooks[0])).__name__)
"""
    said = call(sys.executable, '-c', code, PYTHONPATH=str(site))
    package = re.escape(str(site / 'cmt_backbones'))
    assert re.search(rf'from {package}/__init__.py {package}/.mim/configs/mmdet/retinanet_cmt_s_1x.py', said)
    assert 'RetinaNet CMT 3' in said and 'ResumableRandomness' in said


def test_versions_for_a_bug_report(bare):
    said = call(bare / 'bin/python', '-I', '-m', 'cmt_backbones')
    lines = dict(re.findall(r'^(\S+) +(.+)$', said, re.MULTILINE))
    assert lines['cmt_backbones'] == cmt_backbones.__version__
    assert lines['torch'].startswith(metadata.version('torch'))
    assert lines['mmcv'] == lines['mmdet'] == lines['mmseg'] == lines['mmcv.ops'] == 'not installed'


def test_what_is_missing_is_said_in_one_line(bare):
    mmengine = next(bare.glob('lib/*/site-packages/mmengine'))
    hidden = mmengine.rename(mmengine.with_name('hidden'))
    try:
        done = subprocess.run([str(bare / 'bin/python'), '-I', '-c', 'import cmt_backbones'], text=True,
                              capture_output=True)
    finally:
        hidden.rename(mmengine)
    last = done.stderr.strip().splitlines()[-1]
    assert last == ("ImportError: cmt_backbones needs torch and mmengine 0.9 or later (No module named 'mmengine'): "
                    '`pip install torch mmengine`, or onedl-mmengine, and see the README for mmdet and mmseg')
    assert 'During handling' not in done.stderr


def test_tools_without_mmdet_say_in_one_line_what_to_install(bare, tmp_path):
    link(closure('setuptools'), tmp_path)  # without its pkg_resources mmengine 0.10.7 reads no `mmdet::` base
    tools = next(bare.glob('lib/*/site-packages/cmt_backbones/.mim/tools'))
    command = [bare / 'bin/python', tools / 'train.py', tools.parent / 'configs/mmdet/retinanet_cmt_s_1x.py']
    done = subprocess.run([str(part) for part in command], cwd=tmp_path, text=True, capture_output=True,
                          env=dict(os.environ, PYTHONPATH=str(tmp_path), PYTHONWARNINGS='ignore'))
    assert done.returncode == 1 and done.stderr.count('\n') == 1, done.stderr
    assert 'mmdet is not installed' in done.stderr and '`make setup` installs those' in done.stderr

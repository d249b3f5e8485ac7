"""Every command of README and docs/: run on small drawn data, or taken apart and checked piece by piece."""
import argparse
import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed.run
from mmengine.config import Config

import tool
from cmt_backbones.openmmlab import config_from_file

PAGES = [tool.ROOT / 'README.md', *sorted((tool.ROOT / 'docs').glob('*.md'))]
RUN_WHOLE = ('own_dataset.md', 'position_bias.md')  # their commands are run as they stand
TRUSTED = {  # that need a network, a display or an hour
    'pip install .', 'pip install onnx onnxscript onnxruntime', 'tensorboard --logdir work_dirs',
    'source .venv/bin/activate', 'pip install openmim',
    'mim train mmdet configs/mmdet/retinanet_cmt_s_1x.py --gpus 8 --launcher pytorch',
    # Run by tests/export/test_export_page.py.
    'npm install onnxruntime-web@1.30.0 pngjs@7.0.0', 'node detect.mjs retinanet.onnx photo.png'}
URLS = {'http://images.cocodataset.org/zips/train2017.zip', 'http://images.cocodataset.org/zips/val2017.zip',
        'http://images.cocodataset.org/annotations/annotations_trainval2017.zip',
        'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.M | re.S)


def commands(text: str) -> list[str]:
    """The commands of a block, each on one line and without its comment."""
    lines = re.sub(r'\\\n\s*', '', text).splitlines()
    lines = [re.sub(r'(^|\s+)#.*', '', line).strip() for line in lines]
    return [line for line in lines if line]


COMMANDS = [(page.name, command) for page in PAGES for block in blocks(page, 'sh')
            for command in commands(block)]


def test_there_are_commands_on_the_pages():
    pages = {page for page, _ in COMMANDS}
    assert {'README.md', 'training.md', 'own_dataset.md', 'inference.md', 'contributing.md'} <= pages
    assert len(COMMANDS) > 40


# ---------------------------------------------------------------------------- taken apart


@functools.cache
def module(script: str) -> ModuleType:
    """A Python script of this repository, with its folder on the path as for a command."""
    sys.path.append(str((tool.ROOT / script).parent))
    spec = importlib.util.spec_from_file_location('command', tool.ROOT / script)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@functools.cache
def config(path: str) -> Config:
    return config_from_file(tool.ROOT / path)


class Parsed(Exception):
    """Ends a command once it has accepted its arguments, which this holds."""


def parsed(script: str, arguments: list[str], monkeypatch) -> argparse.Namespace:
    """The arguments of a Python script of this repository, by its own parser; SystemExit if it refuses."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, *args, **kwargs):
        raise Parsed(original(parser, *args, **kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
        patch.setattr(sys, 'argv', [script, *arguments])
        with pytest.raises(Parsed) as caught:
            module(script).main()
    return caught.value.args[0]


def check_python(arguments: list[str], monkeypatch) -> None:
    """`python SCRIPT ARGUMENTS`: the script takes them, and what they name is there."""
    script, *rest = arguments
    if script == 'benchmarks/segmentation_memory.py':  # three plain arguments
        name, height, width = rest
        assert int(height) > 0 and int(width) > 0
    else:
        name = getattr(parsed(script, rest, monkeypatch), 'config', None)
    if name is not None:
        assert config(str(name)).model


def check_pytest(arguments: list[str]) -> None:
    assert all((tool.ROOT / name).is_file() for name in arguments)


def launched(command: str, program: str, tmp_path: Path) -> list[str]:
    """What a shell script hands to a program, in whose place an echo stands."""
    echo = tmp_path / program
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    env = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}')
    done = subprocess.run(['bash', '-c', command], cwd=tool.ROOT, env=env, text=True, timeout=60,
                          stdout=subprocess.PIPE)
    assert done.returncode == 0
    return done.stdout.splitlines()


def check_launcher(command: str, tmp_path: Path, monkeypatch) -> None:
    """tools/dist_*.sh and tools/slurm_*.sh: torchrun or srun takes its part, train.py or test.py the rest."""
    slurm = 'slurm_' in command
    handed = launched(command, 'srun' if slurm else 'python', tmp_path)
    at, = (i for i, part in enumerate(handed) if re.search(r'tools/(train|test)\.py$', part))
    if slurm:
        options = dict(zip(handed[:at], handed[1:at]))
        assert {'--partition', '--job-name', '--gres', '--ntasks', '--ntasks-per-node'} <= {*options}
        expected = re.search(r'\bGPUS=(\d+)', command)
        assert options['--ntasks'] == (expected[1] if expected else '8')
    else:
        first = next(i for i, part in enumerate(handed) if part in ('--standalone', '--nnodes'))
        torchrun = torch.distributed.run.get_args_parser().parse_args(handed[first:at + 1])
        assert int(torchrun.nproc_per_node) in (2, 4, 8)
        nodes = re.match(r'NNODES=(\d+) NODE_RANK=(\d+) MASTER_ADDR=(\S+) PORT=(\d+)', command)
        if nodes:
            assert (torchrun.nnodes, str(torchrun.node_rank), torchrun.master_addr,
                    str(torchrun.master_port)) == nodes.groups()
    script = re.search(r'tools/\w+\.py$', handed[at])[0]
    check_python([script, *handed[at + 1:]], monkeypatch)


def check_make(arguments: list[str]) -> None:
    subprocess.run(['make', '-n', *arguments], cwd=tool.ROOT, check=True, stdout=subprocess.PIPE, timeout=60)


def check_download(arguments: list[str]) -> None:
    """Data that test_the_data_lands_where_configs_read_it unpacks, or weights that a config names."""
    option, folder, url = arguments
    assert option == '-P'
    if folder == '~/.cache/torch/hub/checkpoints':
        configs = [*(tool.ROOT / 'configs').glob('*/*.py')]
        assert any(f"'{url}'" in path.read_text() for path in configs)
    else:
        assert url in URLS


def check(command: str, tmp_path: Path, monkeypatch) -> None:
    """Raises for a command that would be refused, and for one that is not known here."""
    words = shlex.split(command)
    while re.match(r'[A-Z_]+=', words[0]):
        words.pop(0)
    program, arguments = words[0], words[1:]
    if command in TRUSTED:
        return
    if re.fullmatch(r'tools/(dist|slurm)_(train|test)\.sh', program):
        check_launcher(command, tmp_path, monkeypatch)
    elif program == 'python' and arguments[0].endswith('.py'):
        check_python(arguments, monkeypatch)
    elif program == 'torchrun':
        launch = torch.distributed.run.get_args_parser().parse_args(arguments)
        check_python([launch.training_script, *launch.training_script_args], monkeypatch)
    elif words[:3] == ['.venv/bin/python', '-m', 'pytest']:
        check_pytest(arguments[2:])
    elif program == 'make':
        check_make(arguments)
    elif program == 'wget':
        check_download(arguments)
    elif program in ('mkdir', 'unzip'):  # run by test_the_data_lands_where_configs_read_it
        assert ('training.md', command) in COMMANDS
    else:
        raise AssertionError(f'a command that no test runs or takes apart: {command}')


@pytest.mark.parametrize('page, command', [c for c in COMMANDS if c[0] not in RUN_WHOLE],
                         ids=lambda part: part if len(part) < 70 else part[:67] + '...')
def test_a_command_is_accepted(page, command, tmp_path, monkeypatch):
    check(command, tmp_path, monkeypatch)


@pytest.mark.parametrize('command', [
    'rm -rf work_dirs', 'python tools/nowhere.py x', 'python tools/train.py configs/mmdet/nowhere.py',
    'python tools/train.py configs/mmdet/retinanet_cmt_s_1x.py --no-such-flag',
    'tools/dist_train.sh configs/mmdet/retinanet_cmt_s_1x.py 8 --no-such-flag',
    'tools/dist_train.sh configs/mmdet/retinanet_cmt_s_1x.py', 'make no-such-target',
    'wget -P data http://images.cocodataset.org/zips/train2018.zip'])
def test_a_wrong_command_is_found(command, tmp_path, monkeypatch):
    with pytest.raises((AssertionError, SystemExit, OSError, subprocess.CalledProcessError)):
        check(command, tmp_path, monkeypatch)


# ---------------------------------------------------------------------------- run


ARCHIVES = {
    'train2017.zip': ['train2017/1.jpg'], 'val2017.zip': ['val2017/2.jpg'],
    'annotations_trainval2017.zip': [f'annotations/instances_{split}2017.json' for split in ('train', 'val')],
    'ADEChallengeData2016.zip': [f'ADEChallengeData2016/{kind}/{split}/ADE_1.{suffix}'
                                 for kind, suffix in (('images', 'jpg'), ('annotations', 'png'))
                                 for split in ('training', 'validation')]}
DOWNLOAD = """#!{python}
import sys, zipfile
folder, url = sys.argv[2:]
name = url.split('/')[-1]
with zipfile.ZipFile(folder + '/' + name, 'w') as archive:
    for member in {archives}[name]:
        archive.writestr(member, 'x')
"""
UNPACK = """#!{python}
import sys, zipfile
_, archive, _, folder = sys.argv[1:]
zipfile.ZipFile(archive).extractall(folder)
"""


def test_the_data_lands_where_configs_read_it(tmp_path):
    """The downloads of training.md, with small archives of the same layout in the place of the real ones."""
    programs = tmp_path / 'programs'
    programs.mkdir()
    for name, text in dict(wget=DOWNLOAD, unzip=UNPACK).items():
        (programs / name).write_text(text.format(python=sys.executable, archives=ARCHIVES))
        (programs / name).chmod(0o755)
    page = tool.ROOT / 'docs' / 'training.md'
    script = '\n'.join(block for block in blocks(page, 'sh') if block.startswith('mkdir -p data'))
    subprocess.run(['bash', '-e', '-c', script], cwd=tmp_path, check=True, timeout=60,
                   env=dict(os.environ, PATH=f'{programs}:{os.environ["PATH"]}'))
    for name in ('mmdet/mask_rcnn_cmt_s_1x', 'mmseg/upernet_cmt_s_160k_ade20k'):
        cfg = config(f'configs/{name}.py')
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            root = tmp_path / loader.dataset.data_root
            parts = [*loader.dataset.data_prefix.values(), loader.dataset.get('ann_file', '')]
            assert all((root / part).exists() for part in parts)
        if 'ann_file' in cfg.val_evaluator:
            assert (tmp_path / cfg.val_evaluator.ann_file).is_file()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the repository's tools and configs, in which commands leave what they make."""
    for name in ('tools', 'configs'):
        (tmp_path / name).symlink_to(tool.ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What is smaller here than on the page, and what needs a network.
SMALLER = {'--images 61 --val 20 --size 320x240': '--images 8 --val 4 --size 160x128', '(320, 240)': '(160, 128)',
           'max_epochs=12': 'max_epochs=1', 'epoch_12': 'epoch_1', '(224, 224)': '(128, 128)', '(149, 149)': '(85, 85)',
           "init_cfg=dict(type='Pretrained', checkpoint=checkpoint)": 'init_cfg=None'}


def run(text: str, monkeypatch) -> None:
    """Writes the files of a part of a page and runs its commands, in order.

    In this process: of a command's own, most would go by with imports.
    """
    for block in re.findall(r'^```python\n(.*?)^```', text, re.M | re.S):
        Path(re.match(r'# (\w+\.py)\n', block)[1]).write_text(block)
    lines = '\n'.join(re.findall(r'^```sh\n(.*?)^```', text, re.M | re.S))
    for command in commands(lines):
        if command in TRUSTED:
            continue
        program, script, *arguments = shlex.split(command)
        assert program == 'python'
        monkeypatch.setattr(sys, 'argv', [script, *arguments])
        if script == 'tools/check_dataset.py':  # exits with what it found
            with pytest.raises(SystemExit) as ended:
                module(script).main()
            assert ended.value.code == 0
        else:
            module(script).main()


def test_a_data_set_of_ones_own(checkout, monkeypatch, capsys):
    page = (tool.ROOT / 'docs' / 'own_dataset.md').read_text()
    for there, here in SMALLER.items():
        assert there in page
        page = page.replace(there, here)
    drawn, detector, segmentor = re.split(r'^## ', page, flags=re.M)
    run(drawn, monkeypatch)

    run(detector, monkeypatch)
    work = checkout / 'work_dirs'
    log, = (work / 'my_detector').glob('*/vis_data/scalars.json')
    assert '"loss_bbox": ' in log.read_text()
    assert any(log.parent.glob('events.out.tfevents.*'))
    demo = {path.name for path in (work / 'my_detector/demo').iterdir()}
    assert demo == {*(f'00000{i}.png' for i in range(4)), 'predictions.json', 'predictions.csv'}
    assert (work / 'my_detector/drawn/sheet.png').is_file()

    run(segmentor, monkeypatch)
    assert 'mIoU: ' in capsys.readouterr().out
    assert len([*(work / 'my_segmentor/label_maps').iterdir()]) == 4
    assert {path.name for path in (work / 'my_segmentor/demo').iterdir()} == {'000000.png'}
    assert (work / 'my_segmentor/drawn/sheet.png').is_file()


def test_the_table_of_the_position_bias(checkout, monkeypatch, capsys):
    page = (tool.ROOT / 'docs' / 'position_bias.md').read_text()
    run(page, monkeypatch)
    printed = re.findall(r'^(near|same \w+) +(\S+) +(\S+)$', capsys.readouterr().out, re.M)
    table = re.findall(r'^\| (near|same \w+) \| (\S+) \| (\S+) \|$', page, re.M)
    assert printed == table and len(table) == 3
    assert (checkout / 'docs/position_bias.png').stat().st_size > 20000


def test_links_lead_somewhere():
    """On a git host, as they stand; on the site they are checked as it is built (test_site.py)."""
    for page in [*PAGES, *(tool.ROOT / 'docs/api').glob('*.md'), *(tool.ROOT / 'benchmarks').glob('*.md')]:
        for target in re.findall(r'\]\((?!http)([^)#]+)', page.read_text()):
            assert (page.parent / target).exists(), f'{page.name}: {target}'


NAMED = r'(?<![\w/.-])(?:tools|benchmarks|configs|tests|cmt_backbones|docs)/[\w/.-]+\.(?:py|sh|md)\b'


@pytest.mark.parametrize('folder', ['.', 'docs', 'benchmarks', 'tools', 'benchmarks/configs'])
def test_files_that_are_named_are_there(folder):
    """On pages, and in what is said of commands."""
    for path in [*(tool.ROOT / folder).glob('*.md'), *(tool.ROOT / folder).glob('*.py')]:
        for name in re.findall(NAMED, path.read_text(encoding='utf-8')):
            assert (tool.ROOT / name).is_file(), f'{path.name}: {name}'


@pytest.mark.parametrize('page', sorted((tool.ROOT / 'benchmarks').glob('*.md')), ids=lambda page: page.stem)
def test_commands_of_the_benchmarks(page):
    """They take hours and data of others: here, that bash can read them and that what they call is there."""
    for block in blocks(page, 'sh'):
        subprocess.run(['bash', '-n', '-c', block], check=True, timeout=60)
        for path in re.findall(r'(?:tools|benchmarks|configs)/[\w/.-]+\.(?:py|sh)\b', block):
            assert (tool.ROOT / path).is_file(), path

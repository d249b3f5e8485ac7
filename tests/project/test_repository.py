"""The repository's habits: its rules of style, and versions that agree."""
import ast
import re
import subprocess
import sys

import yaml

import cmt_backbones
import tool
from tool import ROOT

setup_env = tool.load('setup_env')


def test_the_code_keeps_the_rules_of_pyproject_toml():
    command = [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', '.']
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pre_commit_has_the_ruff_that_is_pinned():
    ruff = setup_env.pinned([ROOT / 'requirements.txt'], 'ruff')[0].split('==')[1]
    repositories = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert [repo['rev'] for repo in repositories if 'ruff' in repo['repo']] == [f'v{ruff}']


def test_the_version_is_one():
    version = cmt_backbones.__version__
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == version
    assert re.findall(r'^## \[([\d.]+)\]', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)[0] == version


def takes_the_systems_encoding(call):
    """Whether a call reads or writes text and does not say in which encoding; that of Windows is not UTF-8."""
    name, of_path = getattr(call.func, 'attr', getattr(call.func, 'id', '')), isinstance(call.func, ast.Attribute)
    if any(keyword.arg == 'encoding' for keyword in call.keywords) or ast.unparse(call.func) == 'Image.open':
        return False
    mode = [ast.unparse(value) for value in [*call.args[0 if of_path else 1:], *(k.value for k in call.keywords)]]
    return name == 'read_text' and not call.args or name == 'write_text' and len(call.args) < 2 or \
        name == 'open' and not any('b' in text for text in mode[:1])


def test_text_files_are_utf8():
    files = [*ROOT.glob('cmt_backbones/**/*.py'), *ROOT.glob('tools/*.py')]
    for name in ('env', 'checks'):  # of `make`, which Windows does not have
        files.remove(ROOT / 'tools' / f'setup_{name}.py')
    calls = [(path, node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
             if isinstance(node, ast.Call)]
    assert [f'{path.name}:{call.lineno}' for path, call in calls if takes_the_systems_encoding(call)] == []
    for text, expected in (('path.read_text()', True), ("open(name, 'rb')", False), ("open(name, 'w')", True),
                           ("path.open('wb')", False), ("path.write_text(x, encoding='utf-8')", False)):
        assert takes_the_systems_encoding(ast.parse(text).body[0].value) == expected

"""The repository's habits: its rules of style, and versions that agree."""
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

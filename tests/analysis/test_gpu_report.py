"""The report of a GPU, rehearsed on a CPU: every part runs, and one that fails stops no other."""
import os
import runpy
import sys
import time

import pytest
import torch

import tool
from cmt_backbones.analysis import gpu_report, named_models, speed
from cmt_backbones.analysis.gpu_report import Part, parts, report
from cmt_backbones.models import cmt, convnext

SMALL = dict(tiny=dict(cmt.ARCHS['tiny'], stem_channels=4, depths=(1, 1, 1, 1), mlp_ratio=1))
NARROW = dict(tiny=dict(convnext.ARCHS['tiny'], embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1)))


def test_it_takes_twenty_minutes_at_most(tmp_path):
    assert sum(part.minutes for part in parts(tmp_path)) <= 20
    for real, rehearsed in zip(parts(tmp_path), parts(tmp_path, True)):
        assert (real.title, rehearsed.cards) == (rehearsed.title, 0)
    assert not any('cpu' in part.command for part in parts(tmp_path))


def narrow(path):
    cfg = read(path)
    cfg.model.neck.out_channels = cfg.model.bbox_head.in_channels = cfg.model.bbox_head.feat_channels = 16
    return cfg


read = named_models.config_from_file


@pytest.mark.timeout(1200)
def test_every_part_runs(tmp_path, monkeypatch, capfd):
    """Within this process, with smaller models still. What pytest runs is run without, and two processes elsewhere."""
    monkeypatch.chdir(tool.ROOT)
    monkeypatch.setattr(cmt, 'ARCHS', {**cmt.ARCHS, **SMALL})
    monkeypatch.setitem(named_models.OURS, 'convnext-t', (convnext.ConvNeXt, NARROW['tiny']))
    monkeypatch.setattr(named_models, 'config_from_file', narrow)
    monkeypatch.setitem(speed.SIDES, 'cpu', 64)
    threads, said = torch.get_num_threads(), {}
    for part in parts(tmp_path, True):
        *module, script = part.command[:1 + (part.command[0] == '-m')]
        if script in ('pytest', 'torch.distributed.run'):
            assert (tool.ROOT / part.command[-1 if script == 'pytest' else 6]).is_file()
            continue
        monkeypatch.setattr(sys, 'argv', [script, *part.command[1 + len(module):]])
        sys.modules.pop(script, None)  # as in a process of its own
        (runpy.run_module if module else runpy.run_path)(script, run_name='__main__')
        said[part.title] = capfd.readouterr().out
    torch.set_num_threads(threads)
    assert len(said) == len(parts(tmp_path)) - 2
    for title, text in said.items():
        assert '|---|' in text.replace(' ', '') or title.startswith('The demo'), title
    assert {plot.stem for plot in tmp_path.glob('*.png')} == {'inference_bf16', 'inference_fp32', 'training_bf16',
                                                              'training_fp32'}
    assert '8 + 4 scenes' in said["The demo's scenes"]
    assert 'CPUAmpOptimWrapper' in said['The demo, trained in mixed precision']
    assert (tmp_path / 'demo/epoch_1.pth').is_file()


HANGS = ('import subprocess, sys, time; print("started", flush=True); '
         'print(subprocess.Popen(["sleep", "300"]).pid, flush=True); time.sleep(300)')


def test_a_part_that_fails_is_told_and_the_others_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_report, 'GRACE', 2)
    (tmp_path / 'curve.png').touch()
    start = time.monotonic()
    page = report(tmp_path, [
        Part('Broken', ['-c', 'print("so far"); raise ValueError("no such kernel")'], 1, 0),
        Part('Slow', ['-c', HANGS], .02, 0),
        Part('Elsewhere', ['-c', 'print("never")'], 1, 64),
        Part('Table', ['-c', 'print("Caption\\n\\n| a |\\n|---|\\n| 1 |")'], 1, 0),
        Part('Words', ['-c', 'print("done")'], 1, 0)]).read_text()
    assert time.monotonic() - start < 60
    sections = {text.splitlines()[0]: text for text in page.split('## ')[1:]}
    assert [*sections] == ['Broken', 'Slow', 'Elsewhere', 'Table', 'Words']
    assert '**failed**: code 1' in sections['Broken'] and 'so far' in sections['Broken']
    assert 'ValueError: no such kernel' in sections['Broken']
    assert '**failed**: not done after 0.02 minutes' in sections['Slow'] and 'started' in sections['Slow']
    assert 'left out: it needs 64 GPU(s), and there are' in sections['Elsewhere']
    assert '\n| a |\n' in sections['Table'] and '```' not in sections['Table']
    assert '```\ndone\n```' in sections['Words'] and '![curve](curve.png)' in page
    assert 'Broken: **failed**: code 1' in capsys.readouterr().out
    started = int(sections['Slow'].split('started\n')[1].split('\n')[0])
    with pytest.raises(ProcessLookupError):  # what the part had started is ended too
        for _ in range(50):
            os.kill(started, 0)
            time.sleep(.1)


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match='PyTorch finds no GPU'):
            tool.run('gpu_report', tmp_path)

"""Backbones on a CPU whose cores another program wants, too, and what OpenMP's way of waiting has to do with it.

    python benchmarks/beside_other_work.py

Each row is measured by `tools/benchmark.py`, alone and while another process multiplies matrices with a thread on each
core. PyTorch divides every operator among its threads and waits for the last one; by default a thread that waits
keeps its core busy, for the very thread that it waits for. `OMP_WAIT_POLICY=PASSIVE` lets it sleep.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ['cmt-s:plain', 'cmt-s', 'timm/convnext_tiny', 'convnext-t']
OTHER_WORK = """
import torch
torch.set_num_threads({cores})
matrix = torch.randn(2048, 2048)
while True:
    matrix @ matrix
"""


def with_policy(policy: str) -> dict:
    """The environment of a process that waits in this way; '' is OpenMP's own choice."""
    env = {name: value for name, value in os.environ.items() if name not in ('OMP_WAIT_POLICY', 'OMP_NUM_THREADS')}
    return dict(env, OMP_WAIT_POLICY=policy) if policy else env


@contextmanager
def other_work(cores: int):
    other = subprocess.Popen([sys.executable, '-c', OTHER_WORK.format(cores=cores)], env=with_policy(''))
    time.sleep(10)  # it has to import PyTorch
    try:
        yield
    finally:
        other.kill()
        other.wait()


def seconds(models: list, threads: int, policy: str, shape: str, repeats: int) -> dict:
    """The median of each model, by its name, and the processor."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, 'tools/benchmark.py', *models, '--shapes', shape, '--device', 'cpu',
                        '--threads', str(threads), '--repeats', str(repeats), '--no-memory', '--out', f'{folder}/run'],
                       cwd=ROOT, env=with_policy(policy), check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(folder, 'run.json').read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', default=MODELS, help='as tools/benchmark.py knows them')
    parser.add_argument('--shape', default='800x1280')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, os.cpu_count()])
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    print(f'{__doc__}\n| model | threads | OMP_WAIT_POLICY | alone, s | beside, s | times as long |')
    print('|---|---|---|---|---|---|')
    for threads in args.threads:
        for policy in ('', 'PASSIVE') if threads > 1 else ('', ):
            alone = seconds(args.models, threads, policy, args.shape, args.repeats)
            with other_work(os.cpu_count()):
                beside = seconds(args.models, threads, policy, args.shape, args.repeats)
            for case, other in zip(alone['cases'], beside['cases']):
                a, b = case['median'], other['median']
                print(f'| {case["name"]} | {threads} | {policy or "(none)"} | {a:.2f} | {b:.2f} | {b / a:.1f} |',
                      flush=True)
    env = alone['environment']
    print(f'\n{args.shape}, one image, medians of {args.repeats} turns; {env["device"]}, {os.cpu_count()} cores, '
          f'torch {env["torch"]}.')


if __name__ == '__main__':
    main()

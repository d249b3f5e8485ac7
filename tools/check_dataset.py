"""Finds what is wrong with the data of a config: `python tools/check_dataset.py CONFIG`.

Each problem is a line with its file. Exits with 1 if there is an error among them, 0 with none or
warnings alone.
"""
import argparse
import os
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from mmengine.config import DictAction
from tqdm import tqdm

from cmt_backbones import openmmlab
from cmt_backbones.data import check


def parse_args():
    parser = argparse.ArgumentParser(description='Checks the images and annotations of a config')
    parser.add_argument('config', help='config file')
    parser.add_argument('--split', nargs='+', choices=['train', 'val', 'test'], default=['train', 'val'],
                        help='train and val by default')
    parser.add_argument('--processes', type=int, default=os.cpu_count(), help='that read images; all cores')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, such as data_root=data/coco/')
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = openmmlab.load_config(SimpleNamespace(**vars(args), launcher='none', work_dir=None))
    problems = []
    for split in args.split:
        if cfg.get(f'{split}_dataloader') is None:
            raise SystemExit(f'{Path(args.config).name} has no {split}_dataloader: choose others by --split')
        progress = partial(tqdm, desc=f'checking {split}', unit='image')
        found = check.check_config(cfg, split, args.processes, progress)
        problems += found
        for problem in found:
            print(problem, flush=True)
    counts = Counter(problem.kind for problem in problems)
    print(f'{counts[check.ERROR]} errors, {counts[check.WARNING]} warnings')
    raise SystemExit(1 if counts[check.ERROR] else 0)


if __name__ == '__main__':
    main()

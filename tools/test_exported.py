"""Evaluates an exported file: `python tools/test_exported.py FILE.onnx CONFIG [CHECKPOINT]`.

With the checkpoint that the file was made from, the model's own metrics stand beside the file's.
"""
import argparse
import json
import sys
import time
from pathlib import Path

from mmengine.config import DictAction
from mmengine.runner import Runner

from cmt_backbones.export import ExportError, evaluation, load
from cmt_backbones.export.predictor import RUNTIMES
from cmt_backbones.openmmlab.inference import ModelError, read_config


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('file', help='.onnx, of tools/export_onnx.py')
    parser.add_argument('config', help='the one that it was exported by: its test set and metric are used')
    parser.add_argument('checkpoint', nargs='?', help='also test the model itself')
    parser.add_argument('--runtime', choices=RUNTIMES, default=RUNTIMES[0], help='default: %(default)s')
    parser.add_argument('--limit', type=int, default=0, metavar='N', help='test on the first N photos only')
    parser.add_argument('--work-dir', default='work_dirs/test_exported', help='for the logs of the model')
    parser.add_argument('--out', type=Path, metavar='FILE', help='where the metrics go, as JSON')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    try:
        cfg = read_config(args.config, args.cfg_options)
        start = time.time()
        found = {args.file: evaluation.evaluate(load(args.file, args.runtime), cfg, args.limit)}
        print(f'{time.time() - start:.0f} s')
        if args.checkpoint:
            cfg.work_dir, cfg.load_from = args.work_dir, args.checkpoint
            cfg.test_dataloader.batch_size = 1  # as the file: a batch is padded to its largest photo
            if args.limit:
                cfg.test_dataloader.dataset.indices = args.limit
            found[args.checkpoint] = Runner.from_cfg(cfg).test()
    except (ModelError, ExportError, OSError) as error:
        sys.exit(f'test_exported: {error}')
    for name, metrics in found.items():
        print(f'{name}: ' + '  '.join(f'{key} {value:.4f}' for key, value in metrics.items()))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1, default=float), encoding='utf-8')


if __name__ == '__main__':
    main()

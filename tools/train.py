"""Trains a detector or segmentor: `python tools/train.py CONFIG`, or tools/dist_train.sh for many GPUs."""
import argparse
import os

from mmengine.config import DictAction

from cmt_backbones import openmmlab
from cmt_backbones.training.preflight import check_before_start


def parse_args(argv):
    parser = argparse.ArgumentParser(description='Trains a detector or segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go; work_dirs/<config> by default')
    parser.add_argument('--amp', nargs='?', const='fp16', choices=['bf16', 'fp16'],
                        help='train in mixed precision; fp16 by default, bf16 on GPUs from A100 on')
    parser.add_argument('--no-tf32', action='store_true', help='float32 on GPUs to its last bit, and slower')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate to the number of GPUs')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='FILE',
                        help='go on from this checkpoint; without FILE, or with auto, from the newest in '
                        'the work dir that is whole')
    parser.add_argument('--new-head', action='store_true',
                        help='weights of load_from that do not fit behind backbone and neck start anew, as for '
                        'other classes')
    for name in openmmlab.LOGGERS:
        parser.add_argument(f'--{name}', action='store_true', help=f'log to {name} too, with images')
    parser.add_argument('--compile', action='store_true', help='compile the backbone by torch.compile')
    parser.add_argument('--quiet', action='store_true',
                        help='show warnings and the results of validations alone; the log has all')
    parser.add_argument('--no-check', action='store_true', help='start without a look at config and data')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, such as train_dataloader.batch_size=4')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@openmmlab.ended_in_order()
def main(argv=None):
    args = parse_args(argv)
    with openmmlab.one_line_errors('train'):
        train(args)


def train(args):
    openmmlab.read_without_pickle()
    cfg = openmmlab.load_config(args)
    cfg.quiet = args.quiet
    if args.amp:
        openmmlab.use_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise SystemExit('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: '
                             'the batch size, over all GPUs, that its learning rate is for')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    services = [name for name in openmmlab.LOGGERS if getattr(args, name)]
    for name in services:
        openmmlab.log_to(cfg, name)
    hooks = [openmmlab.CheckpointMatches(args.new_head), openmmlab.Progress()]
    hooks += [openmmlab.LoggedImages()] if services else []
    hooks += [openmmlab.CompileHook()] if args.compile else []
    told = openmmlab.fit_to_device(cfg)
    warnings = [] if args.no_check else check_before_start(cfg, ('train', 'val'))
    runner = openmmlab.BriefRunner.from_cfg(cfg)
    for warning in [told] * (told is not None) + warnings:
        runner.logger.warning(warning)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()


if __name__ == '__main__':
    main()

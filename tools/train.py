"""Trains a detector or segmentor: `python tools/train.py CONFIG`, or tools/dist_train.sh for many GPUs."""
import argparse
import os

from mmengine.config import DictAction
from mmengine.runner import Runner

from cmt_backbones import openmmlab


def parse_args():
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
    parser.add_argument('--tensorboard', action='store_true', help='log for TensorBoard too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, such as train_dataloader.batch_size=4')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@openmmlab.ended_in_order()
def main():
    args = parse_args()
    openmmlab.read_without_pickle()
    cfg = openmmlab.load_config(args)
    if args.amp:
        openmmlab.use_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise SystemExit('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: '
                             'the batch size, over all GPUs, that its learning rate is for')
        cfg.auto_scale_lr.enable = True
    if args.tensorboard:
        cfg.visualizer.vis_backends.append(dict(type='TensorboardVisBackend'))
    if args.resume:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()

"""Evaluates a checkpoint: `python tools/test.py CONFIG CHECKPOINT`, or tools/dist_test.sh for many GPUs."""
import argparse
import os

from mmengine.config import DictAction

from cmt_backbones import openmmlab
from cmt_backbones.training.preflight import check_before_start


def parse_args(argv):
    parser = argparse.ArgumentParser(description='Evaluates a detector or segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='where logs and metrics go; work_dirs/<config> by default')
    parser.add_argument('--out', help='where predictions go: a .pkl file for a detector, a folder of '
                        'label maps for a segmentor')
    parser.add_argument('--show-dir', help='draw the predictions into this folder')
    parser.add_argument('--tta', action='store_true', help='average over flips (and scales, for segmentors)')
    parser.add_argument('--deploy', action='store_true', help='fold the backbone for inference first')
    parser.add_argument('--amp', action='store_true', help='mixed precision: fp16 on GPUs, bf16 on CPUs that have it')
    parser.add_argument('--no-tf32', action='store_true', help='float32 on GPUs to its last bit, and slower')
    parser.add_argument('--compile', action='store_true', help='compile the backbone by torch.compile')
    parser.add_argument('--quiet', action='store_true', help='show warnings and results alone; the log has all')
    parser.add_argument('--no-check', action='store_true', help='start without a look at config and data')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, such as test_dataloader.batch_size=4')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@openmmlab.ended_in_order()
def main(argv=None):
    args = parse_args(argv)
    with openmmlab.one_line_errors('test'):
        test(args)


def test(args):
    openmmlab.read_without_pickle()
    cfg = openmmlab.load_config(args)
    cfg.quiet, cfg.load_from, cfg.resume = args.quiet, args.checkpoint, False
    detector = cfg.default_scope == 'mmdet'
    if args.out and detector and not args.out.endswith(('.pkl', '.pickle')):
        raise SystemExit(f'--out of a detector is a .pkl file, not {args.out}')
    if args.out and not detector:
        cfg.test_evaluator.update(output_dir=args.out, keep_results=True)
    warnings = [] if args.no_check else check_before_start(cfg, ['test'])
    if args.show_dir:
        openmmlab.show_predictions(cfg, args.show_dir)
    if args.tta:
        openmmlab.use_tta(cfg)
    openmmlab.fit_to_device(cfg)
    runner = openmmlab.BriefRunner.from_cfg(cfg)
    for warning in warnings:
        runner.logger.warning(warning)
    runner.register_hook(openmmlab.CheckpointMatches())
    if args.deploy:
        runner.register_hook(openmmlab.DeployHook())
    if args.amp:
        runner.register_hook(openmmlab.AmpHook())
    if args.compile:
        runner.register_hook(openmmlab.CompileHook())
    if args.out and detector:
        from mmdet.evaluation import DumpDetResults
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    main()

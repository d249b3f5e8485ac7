"""Exports a model or its backbone: `python tools/export_onnx.py CONFIG [CHECKPOINT] --out FILE.onnx`.

A detector returns `boxes` (N, K, 4) in pixels of its input, `scores` (N, K), `labels` (N, K) and, where it has
them, `masks` (N, K, 28, 28); a segmentor `labels` (N, H, W) of one window or whole image, or `logits`; a backbone
its maps. The file is run at once, at other sizes too where it is dynamic, and compared with what the model itself
predicts. docs/export.md says the rest, and how such a file is run.
"""
import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

from cmt_backbones.export import ExportError, files, predictor
from cmt_backbones.models.backbone import switch_to_deploy
from cmt_backbones.openmmlab import without_warnings_of_others
from cmt_backbones.openmmlab.inference import ModelError, build_model, read_config


@without_warnings_of_others()
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('config')
    add('checkpoint', nargs='?', help='file or URL; random weights without one')
    add('--out', type=Path, required=True, metavar='FILE', help='.onnx, or .pt2 for a backbone')
    add('--backbone-only', action='store_true', help='leave out neck and heads')
    add('--shape', type=int, nargs=2, metavar=('H', 'W'),
        help='height and width of the images (default: what the config tests with; of a backbone 512 512)')
    add('--dynamic', action='store_true', help='take images of other sizes too')
    add('--dynamic-batch', action='store_true', help='take several images at once')
    add('--no-nms', action='store_true', help='return the best candidates of a detector, overlapping as they are')
    add('--max-det', type=int, metavar='K', help='how many boxes are returned (default: as the config has it, and '
        '1000 with --no-nms)')
    add('--logits', action='store_true', help='return the logits of a segmentor instead of classes')
    add('--normalise', choices=['inside', 'outside'], default='outside',
        help='inside: take uint8 RGB images (default: %(default)s)')
    add('--fp16', action='store_true', help='round the weights to float16 and store them so')
    add('--openvino', action='store_true', help='compare by OpenVINO too')
    add('--images', nargs='+', default=[], metavar='FILE', help='photos to compare on (default: drawn scenes)')
    add('--no-deploy', action='store_true', help='leave the backbone as it was trained')
    add('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='changes to the config, as for '
        'test.py')
    args = parser.parse_args(argv)
    if args.out.suffix not in ('.onnx', '.pt2'):
        parser.error(f'--out must end in .onnx or .pt2, not {args.out}')
    if args.out.suffix == '.pt2' and not args.backbone_only:
        parser.error('a .pt2 holds a backbone: add --backbone-only, or write .onnx')
    if args.max_det is not None and args.max_det < 1:
        parser.error(f'--max-det takes a number of at least 1, not {args.max_det}')
    try:
        options = files.Options(
            args.shape and tuple(args.shape), args.dynamic, args.dynamic_batch, args.backbone_only,
            not args.no_nms, args.max_det, args.logits, args.normalise == 'inside', args.fp16, args.openvino,
            [predictor.read_image(path) for path in args.images])
        model = build_model(read_config(args.config, args.cfg_options), args.checkpoint)
        if not args.no_deploy:
            switch_to_deploy(model)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.out.suffix == '.pt2':
            files.write_program(model, args.out, options)
        else:
            files.write(model, args.out, options, Path(args.config).stem)
    except (ModelError, ExportError, OSError) as error:
        sys.exit(f'export_onnx: {error}')


if __name__ == '__main__':
    main()

"""Top-1 and top-5 of a CMT classifier: `python tools/eval_imagenet.py DATA CHECKPOINT`.

    python tools/eval_imagenet.py data/imagenet cmt_small.pth
    torchrun --nproc-per-node 8 tools/eval_imagenet.py data/imagenet cmt_small.pth
    python tools/eval_imagenet.py data/imagenet cmt_small.pth --img-size 256 320 --bias-interpolation flat

DATA/val has one folder of images for each class, as ImageNet's. CHECKPOINT is an official file or one of
tools/train_classifier.py; the arch, the classes and the size of the images are read off its weights.
"""
import argparse
import json
import sys
from pathlib import Path

from cmt_backbones.data.classification import TRANSFER_SETS, ClassificationError, eval_loader, eval_transform, open_set
from cmt_backbones.training.evaluation import evaluate, processes, read_classifier


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('checkpoint')
    parser.add_argument('--dataset', choices=['folder', *TRANSFER_SETS], default='folder')
    parser.add_argument('--img-size', type=int, nargs='+', metavar='PIXELS',
                        help="side, or height and width, of the images (default: the bias tables')")
    parser.add_argument('--bias-interpolation', choices=['geometric', 'flat'], default='geometric',
                        help='how the bias tables are resized to other sizes')
    parser.add_argument('--crop-pct', type=float, default=0.875, help='share of a side that is kept')
    parser.add_argument('--squash', action='store_true', help='fit the whole image, at any aspect ratio')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    args = parser.parse_args(argv)
    if args.img_size and (len(args.img_size) > 2 or min(args.img_size) < 32):
        parser.error(f'--img-size takes a height and a width of at least 32, not {args.img_size}')
    try:
        with processes() as (device, rank, world):
            model = read_classifier(args.checkpoint, args.bias_interpolation).to(device)
            size = tuple((args.img_size or [model.arch['pretrain_img_size']]) * 2)[:2]
            data = open_set(args.dataset, args.data, False, eval_transform(size, args.crop_pct, args.squash))
            if len(data.classes) != model.num_classes:
                sys.exit(f'the classifier has {model.num_classes} classes, and the data set {len(data.classes)}')
            loader = eval_loader(data, args.batch_size, args.workers, rank, world)
            result = evaluate(model, loader, device, args.amp)
    except ClassificationError as error:
        sys.exit(str(error))
    if rank == 0:
        print(json.dumps(dict(checkpoint=args.checkpoint, size=size, bias=args.bias_interpolation, **result)))


if __name__ == '__main__':
    main()

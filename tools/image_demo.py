"""Draws what a model finds in photos: `python tools/image_demo.py IMAGES... CONFIG CHECKPOINT --out DIR`.

A file of tools/export_onnx.py may stand in the place of config and checkpoint: `IMAGES... FILE.onnx --out DIR`.

IMAGES are files, folders or patterns such as 'photos/*.jpg'. Detectors draw boxes and, where they have
them, masks; segmentors lay the colours of the classes over the photo, with their names below. Each photo
becomes DIR/<name of the image>.png.
"""
import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.structures import BaseDataElement
from PIL import Image
from tqdm import tqdm

from cmt_backbones.export import ExportError, Predictor, load
from cmt_backbones.export.evaluation import with_found
from cmt_backbones.export.predictor import read_image
from cmt_backbones.openmmlab.inference import ModelError, build_model, read_config
from cmt_backbones.visualization.panels import DrawingError
from cmt_backbones.visualization.photos import draw_classes, draw_file, draw_instances, find_images


class ImagesAndModel(argparse.Action):
    """Parts `IMAGES... CONFIG CHECKPOINT` or `IMAGES... FILE.onnx`."""

    def __call__(self, parser, namespace, values, option_string=None):
        count = 1 if values[-1].endswith('.onnx') else 2
        if len(values) <= count:
            parser.error('the following arguments are required: IMAGES, and CONFIG CHECKPOINT or FILE.onnx')
        namespace.images, namespace.model = values[:-count], values[-count:]
        namespace.config = None if count == 1 else values[-2]


def draw_found(predictor: Predictor, path: Path, threshold: float) -> Image.Image:
    """What an exported file finds in an image."""
    image, info = read_image(path), predictor.info
    sample = with_found(BaseDataElement(), predictor(image, threshold))
    if 'pred_instances' in sample:
        return draw_instances(image, sample, info['classes'], threshold)
    return draw_classes(image, sample, info['classes'], info['palette'])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', nargs='+', action=ImagesAndModel, metavar='IMAGES... CONFIG CHECKPOINT',
                        help='files, folders or patterns; then a config, and a file or URL, or an exported file')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='leave out what a detector is less sure of (default: %(default)s)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='default: %(default)s')
    parser.add_argument('--deploy', action='store_true', help='fold the backbone for inference first')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    try:
        images = find_images(args.images)
        if args.config:
            cfg = read_config(args.config, args.cfg_options)
            draw, model = draw_file, build_model(cfg, args.model[1], args.device, args.deploy)
        else:
            draw, model = draw_found, load(args.model[0])
        args.out.mkdir(parents=True, exist_ok=True)
        for stem, path in tqdm(images.items(), 'drawing', unit='image'):
            draw(model, path, args.score_thr).save(args.out / f'{stem}.png')
    except (ModelError, DrawingError, ExportError, OSError) as error:
        sys.exit(f'image_demo: {error}')
    print(f'{args.out}: {len(images)} pictures')


if __name__ == '__main__':
    main()

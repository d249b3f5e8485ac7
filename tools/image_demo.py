"""Draws what a model finds in photos: `python tools/image_demo.py IMAGES... CONFIG CHECKPOINT --out DIR`.

IMAGES are files, folders or patterns such as 'photos/*.jpg'. Detectors draw boxes and, where they have
them, masks; segmentors lay the colours of the classes over the photo, with their names below. Each photo
becomes DIR/<name of the image>.png.
"""
import argparse
import sys
from glob import glob
from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
import torch
from mmengine.config import DictAction
from PIL import Image
from tqdm import tqdm

import draw_detections
import draw_segmentation
from cmt_backbones.openmmlab.inference import ModelError, build_model, predict, read_config

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


class ImagesError(Exception):
    """Why the photos cannot be taken, in one line."""


def find_images(names: Sequence[str]) -> dict[str, Path]:
    """The images that files, folders and patterns name, by the stem that their picture will have.

    Raises:
        ImagesError: There is none, or two have one stem.
    """
    found: dict[str, Path] = {}
    for name in names:
        if Path(name).is_dir():
            paths = sorted(p for p in Path(name).iterdir() if p.suffix.lower() in SUFFIXES)
        else:
            paths = [Path(name)] if Path(name).is_file() else sorted(map(Path, glob(name)))
        if not paths:
            raise ImagesError(f'there is no image {name}: give files, folders with {", ".join(SUFFIXES)}, '
                              'or patterns in quotes')
        for path in paths:
            other = found.setdefault(path.stem, path)
            if other != path:
                raise ImagesError(f'{other} and {path} would both become {path.stem}.png: draw them into '
                                  'folders of their own')
    return found


def draw_instances(image: np.ndarray, sample, classes: Sequence[str], threshold: float) -> Image.Image:
    """Draws the boxes and masks of a DetDataSample that are as sure as the threshold over an image.

    Args:
        image: (H, W, 3), uint8, RGB.
    """
    found = sample.pred_instances.cpu()
    found = found[found.scores >= threshold]
    objects = dict(bboxes=found.bboxes.double().numpy(), labels=found.labels.numpy(),
                   scores=found.scores.numpy())
    if 'masks' in found:
        objects['masks'] = list(found.masks.numpy())
    title = f'{len(found)} with a score of {threshold:g} or more'
    return draw_detections.draw(image, objects, classes, title)


def draw_classes(image: np.ndarray, sample, classes: Sequence[str], palette: Sequence) -> Image.Image:
    """Draws the label map of a SegDataSample over an image, beside the image, with a legend.

    Args:
        image: (H, W, 3), uint8, RGB.
        palette: RGB by label.
    """
    labels = sample.pred_sem_seg.data[0].cpu().numpy()
    colours = np.array(palette, np.uint8)
    laid_over = (0.4 * image + 0.6 * colours[labels]).astype(np.uint8)
    seen = np.unique(labels)
    pictures = [('image', image), ('classes', laid_over)]
    pictures = [draw_segmentation.titled(draw_segmentation.enlarge(picture, cv2.INTER_CUBIC), title)
                for title, picture in pictures]
    return draw_segmentation.above_legend(pictures, [classes[label] for label in seen], colours[seen])


def draw(model, image: np.ndarray, threshold: float) -> Image.Image:
    """A picture of what a model finds in an image (H, W, 3), uint8, BGR."""
    sample, meta = predict(model, image), model.dataset_meta
    rgb = np.ascontiguousarray(image[..., ::-1])
    if 'pred_instances' in sample:
        return draw_instances(rgb, sample, meta['classes'], threshold)
    return draw_classes(rgb, sample, meta['classes'], meta['palette'])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files, folders or patterns')
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='file or URL')
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
        cfg = read_config(args.config, args.cfg_options)
        model = build_model(cfg, args.checkpoint, args.device, args.deploy)
        args.out.mkdir(parents=True, exist_ok=True)
        for stem, path in tqdm(images.items(), 'drawing', unit='image'):
            image = cv2.imread(str(path))
            if image is None:
                raise ImagesError(f'{path} cannot be read as an image')
            draw(model, image, args.score_thr).save(args.out / f'{stem}.png')
    except (ModelError, ImagesError, OSError) as error:
        sys.exit(f'image_demo: {error}')
    print(f'{args.out}: {len(images)} pictures')


if __name__ == '__main__':
    main()

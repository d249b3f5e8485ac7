"""What is wrong with the images and annotations of a config, found before a training finds it.

mmdet and mmseg leave out much without a word: boxes outside their image, unknown categories, images
without annotations; OpenCV 4 fills what a truncated JPEG lacks with grey. Each of these is told here with
the file that it is in: an error where training would fail or learn from something else than what the
annotations mean, a warning where it is merely good to know.
"""
import json
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope, init_default_scope

ERROR, WARNING = 'error', 'warning'


class Problem(NamedTuple):
    kind: str  # ERROR or WARNING
    where: str  # a file, or a part of the config
    what: str

    def __str__(self) -> str:
        return f'{self.kind}: {self.where}: {self.what}'


def check_config(cfg: Config, split: str, processes: int, progress: Callable = iter) -> List[Problem]:
    """Everything wrong with one split of a config's data.

    Args:
        cfg (Config): Of a detector on annotations in COCO's format, or of a segmentor.
        split (str): ``'train'``, ``'val'`` or ``'test'``.
        processes (int): How many read images at the same time.
        progress (Callable): Is given an iterator over the images and their number (as ``total``), and
            passes the items on.

    Returns:
        list[Problem]: In the order of the files.
    """
    init_default_scope(cfg.default_scope)
    problems = []
    for dataset_cfg in datasets(cfg[f'{split}_dataloader'].dataset):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build(dict(dataset_cfg, lazy_init=True, pipeline=[]))
        problems += check_classes(cfg.model, dataset)
        scales = list(resize_scales(dataset_cfg.get('pipeline', [])))
        if hasattr(dataset, 'COCOAPI'):
            found, items = read_coco(dataset, with_masks(dataset_cfg))
            check = partial(check_detection_image, scales=scales, train=split == 'train')
        elif hasattr(dataset, 'reduce_zero_label'):
            found, items = read_segmentation(dataset)
            check = partial(check_segmentation_image, scales=scales, classes=len(dataset.metainfo['classes']),
                            ignore=dataset.ignore_index)
        else:
            raise ValueError(f'{type(dataset).__name__} cannot be checked: it is neither a dataset of mmdet '
                             "in COCO's format nor one of mmseg")
        problems += found
        with ProcessPoolExecutor(processes) as pool:
            checked = pool.map(check, items, chunksize=8)
            problems += chain.from_iterable(progress(checked, total=len(items)))
    return problems


def datasets(cfg: Mapping) -> Iterator[Mapping]:
    """The datasets inside of wrappers, such as RepeatDataset and ConcatDataset."""
    inner = cfg.get('dataset', cfg.get('datasets'))
    if inner is None:
        yield cfg
    else:
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from datasets(one)


def with_masks(cfg: Mapping) -> bool:
    return any(step.get('with_mask', False) for step in cfg.get('pipeline', []))


def resize_scales(pipeline: Any) -> Iterator[Tuple[int, int]]:
    """The scales of all resizes of a pipeline that keep proportions."""
    if isinstance(pipeline, Mapping):
        if pipeline.get('keep_ratio', False):
            scales = [pipeline.get('scale'), *pipeline.get('scales', [])]
            yield from (scale for scale in scales if isinstance(scale, (list, tuple)))
        pipeline = list(pipeline.values())
    if isinstance(pipeline, (list, tuple)):
        for step in pipeline:
            yield from resize_scales(step)


def check_classes(model: Mapping, dataset: Any) -> List[Problem]:
    """Compares each head's ``num_classes`` with the classes of a dataset."""
    classes = dataset.metainfo.get('classes')
    if not classes or isinstance(classes, str):
        return [Problem(ERROR, type(dataset).__name__, f'its metainfo must name the classes, as a tuple of '
                        f'names; it has {classes!r}')]
    return [Problem(ERROR, f'model.{where}', f'num_classes is {number}, and the dataset has {len(classes)} '
                    f'classes: {", ".join(classes[:3])}{", ..." if len(classes) > 3 else ""}')
            for where, number in heads(model) if number != len(classes)]


def heads(model: Any, where: str = '') -> Iterator[Tuple[str, int]]:
    """Where a config of a model says ``num_classes``, and what. RPNs tell objects from the rest alone."""
    if isinstance(model, Mapping):
        if 'num_classes' in model:
            yield where, model['num_classes']
        for key, value in model.items():
            if key not in ('rpn_head', 'backbone'):
                yield from heads(value, f'{where}.{key}'.strip('.'))
    elif isinstance(model, (list, tuple)):
        for i, value in enumerate(model):
            yield from heads(value, f'{where}[{i}]')


# ---------------------------------------------------------------------------- images


def open_image(path: str) -> Tuple[List[Problem], Optional[np.ndarray]]:
    """An image as it is in its file, whole, or what keeps it from being read."""
    from PIL import Image, ImageOps  # with mmcv, which the datasets need anyway
    Image.MAX_IMAGE_PIXELS = None  # large images are no attack here
    if not Path(path).is_file():
        return [Problem(ERROR, path, 'there is no such file')], None
    if Path(path).stat().st_size == 0:
        return [Problem(ERROR, path, 'the file is empty')], None
    try:
        with Image.open(path) as image:
            return [], np.asarray(ImageOps.exif_transpose(image))  # as OpenCV reads it
    except Exception as error:  # PIL has no common class for what can be wrong with a file
        return [Problem(ERROR, path, f'the image cannot be read whole ({error})')], None


def check_pixels(path: str, pixels: np.ndarray, scales: Iterable[Tuple[int, int]]) -> List[Problem]:
    """What is unusual about an image (H, W) or (H, W, C) that is resized to one of the scales."""
    height, width = pixels.shape[:2]
    problems = []
    if pixels.ndim == 2 or pixels.shape[2] != 3:
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        problems.append(Problem(WARNING, path, f'has {channels} channels, and is read with 3'))
    if pixels.dtype != np.uint8:
        problems.append(Problem(WARNING, path, f'has values of {pixels.dtype}, and is read with 8 bits'))
    long, short = max(height, width), min(height, width)
    lost = [scale for scale in scales if short * min(max(scale) / long, min(scale) / short) < 0.5]
    if lost:
        what = f'is {width}x{height} pixels: resized to {lost[0]}, nothing is left'
        problems.append(Problem(ERROR, path, what))
    elif long > 50 * short or short < 8:
        problems.append(Problem(WARNING, path, f'is {width}x{height} pixels: resized, little of it is left'))
    return problems


# ---------------------------------------------------------------------------- detection


def read_coco(dataset: Any, masks: bool) -> Tuple[List[Problem], List[tuple]]:
    """What is wrong with an annotation file as a whole, and each image with its annotations.

    Returns:
        tuple: Problems; for each image ``(path, its entry, [(problems of an annotation)])``.
    """
    path = dataset.ann_file
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        images, annotations, categories = (content[key] for key in ('images', 'annotations', 'categories'))
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"is no annotation file in COCO's format ({type(error).__name__}: {error})"
        return [Problem(ERROR, path, what)], []
    names = {category['id']: category['name'] for category in categories}
    problems = [Problem(ERROR, path, f'has no category {name!r}, a class of the config: labels would shift')
                for name in dataset.metainfo['classes'] if name not in names.values()]
    problems += [Problem(WARNING, path, f'annotations of {name!r} are left out: it is no class of the config')
                 for name in names.values() if name not in dataset.metainfo['classes']]
    for what, entries in (('images', images), ('annotations', annotations)):
        twice = [i for i, count in Counter(entry['id'] for entry in entries).items() if count > 1]
        if twice:
            problems.append(Problem(ERROR, path, f'has several {what} with the id {twice[0]}'))
    by_image = {image['id']: [] for image in images}
    for annotation in annotations:
        if annotation['image_id'] in by_image:
            by_image[annotation['image_id']].append(annotation)
        else:
            problems.append(Problem(ERROR, path, f'annotation {annotation["id"]} is of image '
                                    f'{annotation["image_id"]}, which is not there'))
    wanted = {i for i, name in names.items() if name in dataset.metainfo['classes']}
    if not any(annotation['category_id'] in wanted for annotation in annotations):
        problems.append(Problem(ERROR, path, 'no image has annotations of the classes of the config'))
    return problems, [(str(Path(dataset.data_prefix['img']) / image['file_name']), image,
                       by_image[image['id']], set(names), wanted, masks) for image in images]


def check_detection_image(item: tuple, scales: Iterable[Tuple[int, int]], train: bool) -> List[Problem]:
    path, entry, annotations, known, wanted, masks = item
    problems, pixels = open_image(path)
    if pixels is not None:
        problems += check_pixels(path, pixels, scales)
        height, width = pixels.shape[:2]
        if (entry.get('width'), entry.get('height')) != (width, height):
            problems.append(Problem(ERROR, path, f'is {width}x{height}, and its annotations say '
                                    f'{entry.get("width")}x{entry.get("height")}'))
    size = entry.get('width', math.inf), entry.get('height', math.inf)
    for annotation in annotations:
        problems += [Problem(kind, path, f'annotation {annotation["id"]} {what}')
                     for kind, what in check_annotation(annotation, size, known, masks)]
    if train and not any(annotation['category_id'] in wanted for annotation in annotations):
        problems.append(Problem(WARNING, path, 'has no annotations of the classes of the config'))
    return problems


def check_annotation(annotation: Mapping, size: Tuple[float, float], known: Iterable[int],
                     masks: bool) -> Iterator[Tuple[str, str]]:
    """What is wrong with one object of an image of `size`, (width, height), and how badly."""
    if annotation.get('category_id') not in known:
        yield ERROR, f'is of category {annotation.get("category_id")}, which its file does not define'
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(
            isinstance(v, (int, float)) and math.isfinite(v) for v in box):
        yield ERROR, f'has no box of four numbers, but {box!r}'
        return
    x, y, width, height = box
    if width < 1 or height < 1 or annotation.get('area', width * height) <= 0:
        yield WARNING, f'is left out, since it has no area: box {box}, area {annotation.get("area")}'
    elif x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        yield WARNING, f'is left out, since it lies outside of the image of {size[0]}x{size[1]}: box {box}'
    elif x < -1 or y < -1 or x + width > size[0] + 1 or y + height > size[1] + 1:  # roundings are common
        yield WARNING, f'reaches out of the image of {size[0]}x{size[1]}: box {box}'
    if masks and not annotation.get('iscrowd'):
        yield from check_segmentation(annotation.get('segmentation'), size)


def check_segmentation(segmentation: Any, size: Tuple[float, float]) -> Iterator[Tuple[str, str]]:
    """What is wrong with a mask: polygons, or a run-length code of the image's size."""
    if isinstance(segmentation, Mapping):
        if list(segmentation.get('size', [])) != [size[1], size[0]]:
            yield ERROR, f'has a mask of {segmentation.get("size")} (height, width), unlike its image'
        return
    if not isinstance(segmentation, list) or not segmentation:
        yield ERROR, f'has no mask, but {segmentation!r}'
        return
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            yield WARNING, f'has a polygon that is not at least 3 points: {polygon!r}'
        elif polygon_area(np.array(polygon, float).reshape(-1, 2)) == 0:
            yield WARNING, f'has a polygon without area: {polygon!r}'


def polygon_area(points: np.ndarray) -> float:
    """Of (n, 2) corners, by the shoelace formula."""
    x, y = points.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


# ---------------------------------------------------------------------------- segmentation


def read_segmentation(dataset: Any) -> Tuple[List[Problem], List[dict]]:
    """What is wrong with a dataset of mmseg as a whole, and its items."""
    try:
        items = dataset.load_data_list()
    except (OSError, AssertionError) as error:
        return [Problem(ERROR, type(dataset).__name__, f'cannot list its images ({error})')], []
    if not items:
        return [Problem(ERROR, dataset.data_prefix['img_path'], f'has no image *{dataset.img_suffix}')], []
    return [], items


def check_segmentation_image(item: Mapping, scales: Iterable[Tuple[int, int]], classes: int,
                             ignore: int) -> List[Problem]:
    path, map_path = item['img_path'], item['seg_map_path']
    problems, pixels = open_image(path)
    map_problems, labels = open_image(map_path)
    if pixels is not None:
        problems += check_pixels(path, pixels, scales)
    if labels is None:
        return problems + map_problems
    if pixels is not None and labels.shape[:2] != pixels.shape[:2]:
        (height, width), (map_height, map_width) = pixels.shape[:2], labels.shape[:2]
        problems.append(Problem(ERROR, map_path,
                                f'is {map_width}x{map_height}, and its image {width}x{height}'))
    if labels.ndim != 2:
        return problems + [Problem(ERROR, map_path, f'has {labels.shape[2]} channels: a label map has one, '
                                   'with the number of the class')]
    counts = Counter(dict(zip(*np.unique(labels, return_counts=True))))
    wrong = {int(v): int(n) for v, n in counts.items() if not 0 <= trained_label(int(v), item) < classes
             and trained_label(int(v), item) != ignore}
    if wrong:
        problems.append(Problem(ERROR, map_path, 'has labels beyond the {} classes: {}'.format(
            classes, ', '.join(f'{value} ({count} pixels)' for value, count in wrong.items()))))
    if all(trained_label(int(v), item) == ignore for v in counts):
        problems.append(Problem(WARNING, map_path, 'has no labels but the ignored one'))
    return problems


def trained_label(label: int, item: Mapping) -> int:
    """What mmseg's LoadAnnotations makes of a label in a file."""
    if item['reduce_zero_label']:
        label = 255 if label in (0, 255) else label - 1
    return (item.get('label_map') or {}).get(label, label)

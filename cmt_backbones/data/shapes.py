"""Drawn scenes that are worth learning, for detection, instance and semantic segmentation.

Each scene holds 3 to 5 ellipses, rectangles, triangles, stars and crosses that are turned,
textured and lit at random, cover one another and lie before a background of their kind. A
class has its outline and a range of hues, of which backgrounds have all: with outlines alone
a detector needs several times as long. One set of scenes serves detection, instance and
semantic segmentation:

    OUT/images/{train,val}/000000.jpg
    OUT/annotations/{train,val}.json    COCO: tight boxes and polygons of what is visible
    OUT/labels/{train,val}/000000.png   class maps, one byte a pixel: 0 is background, and
                                        1 to 5 are CLASSES in order
    OUT/settings.json                   the arguments that OUT was made from

The class maps are numbered like ADE20K's, so both ways of mmseg read them:
`reduce_zero_label=False` with 6 classes learns the background as a class,
`reduce_zero_label=True` with the 5 shapes ignores it. The same arguments and libraries give
the same bytes. OUT appears when it is complete; a second call that equals it returns at once.
"""
import json
import os
import shutil
from pathlib import Path
from typing import List, Optional, Tuple

import cv2
import numpy as np
from tqdm import tqdm

CLASSES = ('ellipse', 'rectangle', 'triangle', 'star', 'cross')
VERSION = 3  # raise it when the same arguments give other pictures
OBJECTS = (3, 5)  # per image
MIN_SIDE, MAX_SIDE = 22, 0.66  # root of an object's area: pixels, share of the short image side
INSIDE = 0.8  # of an object's area that lies within the image, at least
VISIBLE, VISIBLE_PIXELS = 0.5, 240  # of that, what others leave uncovered, at least
CONTRAST = 70  # RGB distance (of 441) aimed at between an object and what borders it
SUPERSAMPLING = 4


class ShapesError(Exception):
    """Why the scenes cannot be written, in one line."""


def outline(rng: np.random.Generator, label: int) -> np.ndarray:
    """A random specimen of class `label`: vertices (n, 2), around the origin and of area 1."""
    name = CLASSES[label]
    if name == 'ellipse':
        turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        points = np.stack([np.cos(turn), rng.uniform(0.6, 1) * np.sin(turn)], 1)
    elif name == 'rectangle':
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.5, 1)]
    elif name == 'triangle':
        points = np.array([[-1, -0.58], [1, -0.58], [0, 1.15]]) * [1, rng.uniform(0.75, 1.3)]
    elif name == 'star':
        turn = np.pi * np.arange(10) / 5
        radius = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1)
        points = np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)
    else:
        t = rng.uniform(0.28, 0.4)  # half the width of an arm
        arm = np.array([[t, 1], [t, t], [1, t]])  # clockwise in the first quadrant
        points = np.concatenate([arm, arm[::-1] * [1, -1], -arm, arm[::-1] * [-1, 1]])
    x, y = points.T
    return points / np.sqrt(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def coverage(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The share (H, W) of each pixel, 0 to 1, inside a polygon given in pixels from the corner."""
    fine = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    centred = points * SUPERSAMPLING - 0.5  # OpenCV counts from the centre of the first pixel
    cv2.fillPoly(fine, [np.round(centred * 16).astype(np.int32)], 255, shift=4)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def lay_out(rng: np.random.Generator, height: int, width: int
            ) -> Tuple[List[int], List[np.ndarray], np.ndarray]:
    """Places objects, later ones over earlier ones, with enough of each to be recognised.

    Returns:
        tuple: The classes, a list of indices; the coverages (H, W), a list; and the map (H, W),
        uint8, of the object seen at a pixel: 0 for the background, k for the k-th object.
    """
    count = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    order = np.concatenate([rng.permutation(len(CLASSES)) for _ in range(2)])  # classes balance
    labels, covers, areas, tries = [], [], [], 0
    ids = np.zeros((height, width), np.uint8)
    while len(labels) < count and (tries < 100 or len(labels) < OBJECTS[0]):
        tries += 1  # one that is small enough always fits somewhere
        label = int(order[len(labels)])
        side = np.exp(rng.uniform(np.log(MIN_SIDE), np.log(MAX_SIDE * min(height, width))))
        turn = rng.uniform(0, 2 * np.pi)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = rng.uniform(0.3 * side, np.array([width, height]) - 0.3 * side)
        cover = coverage(side * outline(rng, label) @ matrix + centre, height, width)
        area = np.count_nonzero(cover > 0.5)
        seen = np.where(cover > 0.5, np.uint8(len(labels) + 1), ids)
        left = np.bincount(seen.ravel(), minlength=len(labels) + 2)[1:]
        needed = np.maximum(VISIBLE * np.array(areas + [area]), VISIBLE_PIXELS)
        if area >= INSIDE * side ** 2 and np.all(left >= needed):
            labels.append(label)
            covers.append(cover)
            areas.append(area)
            ids = seen
    return labels, covers, ids


def colour(rng: np.random.Generator, label: Optional[int] = None) -> np.ndarray:
    """A random colour (3,), float32 in BGR, 0 to 255, neither black nor white.

    That of an object of class `label` has a hue of the class's fifth of the circle.
    """
    hue, saturation = rng.uniform(0, 360), rng.uniform(0.1, 0.85)
    if label is not None:
        hue, saturation = (label + hue / 360) * 360 / len(CLASSES), rng.uniform(0.4, 0.9)
    hsv = np.float32([[[hue, saturation, rng.uniform(0.3, 0.95)]]])
    return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0]


def pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A gradient, clouds, stripes, a checker or speckle: (H, W), float32 from -1 to 1."""
    kind = rng.integers(5)
    turn, period, phase = rng.uniform(0, np.pi), rng.uniform(7, 20), rng.uniform(0, 6)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    if kind == 0:
        out = u
    elif kind == 1:
        grid = rng.random(tuple(rng.integers(3, 9, 2)), np.float32)
        out = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    elif kind == 2:
        out = np.tanh(3 * np.sin(2 * np.pi * u / period + phase))
    elif kind == 3:
        out = np.tanh(6 * np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period + phase))
    else:
        out = cv2.GaussianBlur(rng.random((height, width), np.float32), None, rng.uniform(0.8, 2.5))
    low, high = out.min(), out.max()
    return (2 * (out - low) / (high - low) - 1).astype(np.float32)


def paint(rng: np.random.Generator, labels: List[int], covers: List[np.ndarray]) -> np.ndarray:
    """Paints objects, given by classes and coverages (H, W) from back to front.

    Returns:
        np.ndarray: (H, W, 3), uint8, BGR.
    """
    height, width = covers[0].shape
    first, second = colour(rng), colour(rng)
    # Weak patterns: a strong checker would be full of rectangles.
    image = first + 0.25 * (second - first) * pattern(rng, height, width)[..., None]
    image += rng.uniform(5, 18) * pattern(rng, height, width)[..., None]
    turn, depth, darkness = rng.uniform(0, 2 * np.pi), rng.uniform(1, 4), rng.uniform(0.1, 0.45)
    y, x = np.mgrid[:height, :width]
    lit = x * np.cos(turn) + y * np.sin(turn)  # (H, W), pixels towards the light
    away = np.float32([[1, 0, -depth * np.cos(turn)], [0, 1, -depth * np.sin(turn)]])

    for label, cover in zip(labels, covers):
        inside = (cover > 0.5).astype(np.uint8)
        shadow = cv2.GaussianBlur(cv2.warpAffine(cover, away, (width, height)), None, depth)
        image *= 1 - darkness * shadow[..., None]

        border = image[cv2.dilate(inside, np.ones((5, 5), np.uint8)) > inside]
        best = -1.0
        for _ in range(12):
            candidate = colour(rng, label)
            # The fifth percentile: it has to stand out from each of the things that it borders.
            contrast = np.percentile(np.linalg.norm(border - candidate, axis=1), 5)
            if contrast > best:
                best, base = contrast, candidate
            if best > CONTRAST:
                break
        other = base + rng.uniform(0.1, 0.3) * (colour(rng) - base)
        fill = base + (other - base) * pattern(rng, height, width)[..., None]
        from_centre = (lit - lit[inside > 0].mean()) / np.sqrt(inside.sum())
        fill *= 1 + 0.15 * np.clip(from_centre, -1, 1)[..., None]
        image += cover[..., None] * (fill - image)

    image *= 1 + rng.uniform(0, 0.25) * (2 * (lit - lit.min()) / np.ptp(lit) - 1)[..., None]
    image = cv2.GaussianBlur(image, None, rng.uniform(0.3, 0.8))
    image += rng.normal(0, rng.uniform(1, 6), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def polygons(mask: np.ndarray) -> List[List[int]]:
    """The outlines of a mask (H, W) as COCO's lists of x, y, in pixels from the corner.

    They follow the edges of pixels, so that the mask they stand for is this very one. COCO has
    no holes: a region around one is cut in two through the hole, as often as needed.
    """
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes = [c for c, (_, _, _, outer) in zip(contours, tree[0] if contours else ()) if outer >= 0]
    if holes:
        cut = int(holes[0][..., 0].min() + holes[0][..., 0].max()) // 4
        left, right = mask.copy(), mask.copy()
        left[:, cut:] = False
        right[:, :cut] = False
        return polygons(left) + polygons(right)
    # A contour runs through centres of half pixels: the nearest edge of a pixel is its place.
    snapped = [(c[:, 0] + 1) // 2 for c in contours]
    return [c[(c != np.roll(c, 1, 0)).any(1)].ravel().tolist() for c in snapped]


def scene(rng: np.random.Generator, height: int, width: int
          ) -> Tuple[np.ndarray, np.ndarray, List[dict]]:
    """One scene.

    Returns:
        tuple: The image (H, W, 3), uint8, BGR; the class map (H, W), uint8; and its COCO
        annotations, a list of dicts without `id` and `image_id`.
    """
    labels, covers, ids = lay_out(rng, height, width)
    annotations = []
    for k, label in enumerate(labels, 1):
        ys, xs = np.nonzero(ids == k)
        x, y = int(xs.min()), int(ys.min())
        annotations.append(dict(
            category_id=label + 1, iscrowd=0, area=len(xs),
            bbox=[x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
            segmentation=polygons(ids == k)))
    classes = np.array([0] + [label + 1 for label in labels], np.uint8)
    return paint(rng, labels, covers), classes[ids], annotations


def write_split(out: Path, split: str, count: int, settings: dict) -> None:
    """Writes `count` scenes of a split and their annotations below `out`."""
    for folder in ('images', 'labels'):
        (out / folder / split).mkdir(parents=True)
    coco = dict(info=dict(description='scenes of tools/make_shapes.py', **settings), images=[],
                annotations=[], categories=[dict(id=i, name=n) for i, n in enumerate(CLASSES, 1)])
    for i in tqdm(range(count), f'drawing {split}', unit='image', mininterval=1):
        # A stream of its own for each image: no split and no image depends on another's size.
        rng = np.random.default_rng([settings['seed'], ('train', 'val').index(split), i])
        width, height = settings['sizes'][rng.integers(len(settings['sizes']))]
        image, class_map, annotations = scene(rng, height, width)
        name = f'{i:06d}'
        # Not cv2.imwrite, which keeps quiet about a full disk.
        jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (out / 'images' / split / f'{name}.jpg').write_bytes(jpeg.tobytes())
        png = cv2.imencode('.png', class_map)[1]
        (out / 'labels' / split / f'{name}.png').write_bytes(png.tobytes())
        coco['images'].append(dict(id=i, file_name=f'{name}.jpg', width=width, height=height))
        for annotation in annotations:
            number = len(coco['annotations']) + 1
            coco['annotations'].append(dict(annotation, id=number, image_id=i))
    (out / 'annotations').mkdir(exist_ok=True)
    (out / 'annotations' / f'{split}.json').write_text(json.dumps(coco), encoding='utf-8')


def make_shapes(out: Path, train: int, val: int, seed: int, sizes: List[Tuple[int, int]]) -> bool:
    """Writes the data set, or finds it there.

    Args:
        out: The folder.
        train: How many images to learn from.
        val: How many are held out.
        seed: Anything from 0.
        sizes: Each image has one of these (width, height), in pixels.

    Returns:
        bool: Whether anything was written.

    Raises:
        ShapesError: `out` holds something else.
    """
    settings = dict(version=VERSION, train=train, val=val, seed=seed, sizes=[[*s] for s in sizes])
    if out.is_dir() and any(out.iterdir()):
        try:
            found = json.loads((out / 'settings.json').read_text(encoding='utf-8'))
        except (OSError, ValueError):
            found = None
        if found == settings:
            return False
        raise ShapesError(f'{out} holds ' + (
            'something else.' if found is None else f'the scenes of other arguments: {found}.')
            + ' Remove it or name another folder.')
    if out.exists() and not out.is_dir():
        raise ShapesError(f'{out} is a file: name a folder.')

    part = out.with_name(out.name + '.part')  # what an interrupted call leaves is never in OUT
    shutil.rmtree(part, ignore_errors=True)
    write_split(part, 'train', train, settings)
    write_split(part, 'val', val, settings)
    (part / 'settings.json').write_text(json.dumps(settings) + '\n', encoding='utf-8')
    os.replace(part, out)
    return True

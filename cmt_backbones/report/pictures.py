"""Small pictures for a page: photos as data URIs, boxes as shapes over them, label maps."""
import base64
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from ..visualization.detections import decode
from ..visualization.segmentation import OPEN
from .detection import Matches
from .detection_errors import KINDS, MISSED, WORDS, Errors
from .segmentation import Shown

SIDE = 480  # pixels: the long side of a picture at most
BYTES = 36_000  # of a picture, at most: twelve of them in base64 are half a megabyte
GREY = 225


def shrunk(image: np.ndarray, interpolation: int = cv2.INTER_AREA, side: int = SIDE) -> np.ndarray:
    """An image (H, W) or (H, W, 3) with a long side of `side` pixels at most."""
    scale = min(1, side / max(image.shape[:2]))
    size = [max(1, round(pixels * scale)) for pixels in image.shape[1::-1]]
    return image if scale == 1 else cv2.resize(image, size, interpolation=interpolation)


def photo(path: str) -> Optional[np.ndarray]:
    """An image (h, w, 3), uint8, BGR, small; None if it cannot be read."""
    try:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
    except cv2.error:  # of more pixels than OpenCV takes
        return None
    return None if image is None else shrunk(image)


def jpeg(image: np.ndarray) -> str:
    """A data URI of an image (H, W, 3), uint8, BGR, of at most BYTES: lower in quality, then in size."""
    while True:
        for quality in (82, 70, 55):
            data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if len(data) <= BYTES:
                return uri('jpeg', data)
        image = shrunk(image, side=int(max(image.shape[:2]) * 0.8))


def png(image: np.ndarray) -> str:
    """The same without loss, of an image (H, W, 3), uint8, BGR, of few colours."""
    while True:
        data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
        if len(data) <= BYTES:
            return uri('png', data)
        image = shrunk(image, cv2.INTER_NEAREST, int(max(image.shape[:2]) * 0.8))


def uri(kind: str, data: bytes) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def rank_images(matches: Matches, images: int, threshold: float) -> List[dict]:
    """What is right and wrong in each image from a score on, the worst image first.

    Returns:
        list[dict]: `image`, its place; `f1`; `right`, `wrong` and `missed`, numbers; images with nothing in them and
        nothing found are left out.
    """
    sure = matches.score >= threshold
    per_image = [np.bincount(places, minlength=images) for places in (
        matches.image[sure & matches.right], matches.image[sure & ~matches.right], matches.object_image)]
    found = []
    for image, (right, wrong, objects) in enumerate(zip(*per_image)):
        if wrong + objects:
            found.append(dict(image=image, right=int(right), wrong=int(wrong), missed=int(objects - right),
                              f1=float(2 * right / (right + wrong + objects))))
    return sorted(found, key=lambda one: (one['f1'], one['right'] - one['wrong'] - one['missed']))


def chosen(ranked: Sequence[Any], count: int) -> Tuple[List[Any], List[Any]]:
    """The worst and the best of a list from worst to best, `count` of each, none in both."""
    worst = list(ranked[:min(count, (len(ranked) + 1) // 2)])
    return worst, list(ranked[len(worst):][::-1][:count])


def outline(mask: Any, size: Tuple[int, int], shown: Tuple[int, int]) -> str:
    """The path of a mask, as SVG has it, filled by `evenodd`: holes are paths within it.

    Args:
        mask: In COCO's form, polygons or a run-length code.
        size: Height and width of its image.
        shown: Height and width of the picture, in whose pixels the path is; it strays from the mask by one or two.
    """
    small = cv2.resize(decode(mask, *size).astype(np.uint8) * 255, shown[::-1], interpolation=cv2.INTER_AREA) > 127
    contours, _ = cv2.findContours(small.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    lines = [cv2.approxPolyDP(contour, .7, True)[:, 0] + .5 for contour in contours]  # through centres of pixels
    return ''.join('M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in line) + 'Z' for line in lines)


def detection_picture(ranked: dict, path: str, size: Tuple[int, int], matches: Matches, errors: Errors,
                      classes: Sequence[str], threshold: float, masks: Optional[Sequence[Any]] = None,
                      object_masks: Optional[Sequence[Any]] = None) -> Dict[str, Any]:
    """An image with its objects and its detections, for the page.

    Args:
        ranked: One of :func:`rank_images`.
        path, size: Of the image; size is height and width in its own pixels.
        threshold: The score from which detections are shown.
        masks, object_masks: Of all detections and of all objects, by their `number` in `matches`, in COCO's form; or
            None for boxes alone.

    Returns:
        dict: `name`, `text`, `image` (a data URI), `width` and `height` in pixels of that, `objects` and `detections`,
        each a list of dicts with `x`, `y`, `w`, `h`, `path` (of the mask, or ''), `kind`, `name` and `text`; `broken`
        where there is no image.
    """
    image = photo(path)
    broken = image is None
    if image is None:
        scale = min(1, SIDE / max(size))
        image = np.full((max(1, round(size[0] * scale)), max(1, round(size[1] * scale)), 3), GREY, np.uint8)
    height, width = image.shape[:2]
    scale = np.array([width / size[1], height / size[0]] * 2)
    sure = matches.score >= threshold

    def shape(box: np.ndarray, mask: Any, kind: str, name: str, text: str) -> dict:
        x, y, w, h = (box * scale).round(1).tolist()
        path = '' if mask is None else outline(mask, size, (height, width))
        return dict(x=x, y=y, w=w, h=h, path=path, kind=kind, name=name, text=text)

    here, = np.nonzero((matches.image == ranked['image']) & sure)
    detections = []
    for at in here[np.argsort(-matches.score[here], kind='stable')]:
        kind = 'right' if matches.right[at] else KINDS[errors.kind[at]]
        words = WORDS.get(kind, kind)
        name = classes[matches.label[at]]
        mask = masks and masks[matches.number[at]]
        detections.append(shape(matches.box[at], mask, kind, name, f'{name} {matches.score[at]:.2f}: {words}'))
    objects = []
    found = {int(i) for i in matches.found[matches.right & sure]}
    for at in np.nonzero(matches.object_image == ranked['image'])[0]:
        name, kind = classes[matches.object_label[at]], 'right' if int(at) in found else MISSED
        mask = object_masks and object_masks[matches.object_number[at]]
        objects.append(shape(matches.object_box[at], mask, kind, name,
                             f'{name}: {"found" if kind == "right" else "not found"}'))
    return dict(name=Path(path).name, text=caption(ranked), image=jpeg(image), width=width, height=height,
                objects=objects, detections=detections, broken=broken)


def caption(ranked: dict) -> str:
    parts = [f"F1 {ranked['f1']:.2f}"] + [f'{ranked[name]} {word}' for name, word in (
        ('right', 'right'), ('wrong', 'wrong'), ('missed', 'not found')) if ranked[name] or name == 'right']
    return ' · '.join(parts)


def segmentation_picture(shown: Shown, palette: Sequence[Sequence[int]]) -> Dict[str, Any]:
    """An image, its truth, its prediction and where they differ, as data URIs; `broken` without the image."""
    image = photo(shown.path)
    broken = image is None
    real, found = (shrunk(labels, cv2.INTER_NEAREST) for labels in (shown.real, shown.found))
    colours = np.full((256, 3), 255, np.uint8)
    colours[:len(palette)] = np.array(palette, np.uint8)[:, ::-1]  # BGR
    wrong = np.where(((real != found) & (real != OPEN))[..., None], np.uint8([60, 60, 225]), np.uint8([238] * 3))
    wrong[real == OPEN] = 255
    seen = np.union1d(real[real != OPEN], found)
    text = f'IoU {shown.iou:.3f} · {shown.right:.1%} of pixels right'
    return dict(name=Path(shown.path).name, text=text, broken=broken, width=real.shape[1], height=real.shape[0],
                image=jpeg(np.full((*real.shape, 3), GREY, np.uint8) if image is None else image),
                truth=png(colours[real]), prediction=png(colours[found]), wrong=png(wrong), labels=seen.tolist())

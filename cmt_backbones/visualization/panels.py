"""Pictures side by side: enlarged, with titles above and the names of classes below."""
from pathlib import Path
from typing import List, Sequence

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHORT_SIDE = 400  # pixels: smaller images are enlarged up to this, and 4 times at most
LONG_SIDE = 1600  # pixels: larger images are drawn smaller; a photo of a phone has 4000
CELL = 640  # pixels: the long side of one picture on a sheet of many
GAP = 8  # pixels between pictures
HEAD = 24  # pixels above a picture, for its title
PAPER = (255, 255, 255)
FONTS = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'


class DrawingError(Exception):
    """Why something cannot be drawn, in one line."""


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / ('DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf')), size)


def scale_of(picture: np.ndarray, long_side: int = LONG_SIDE) -> float:
    """How many times as large a picture (H, W, 3) is drawn."""
    larger = int(np.clip(round(SHORT_SIDE / min(picture.shape[:2])), 1, 4))
    return min(larger, long_side / max(picture.shape[:2]))


def enlarge(picture: np.ndarray, interpolation: int, long_side: int = LONG_SIDE) -> np.ndarray:
    """A picture (H, W, 3) at the size to be drawn at."""
    scale = scale_of(picture, long_side)
    if scale < 1 and interpolation != cv2.INTER_NEAREST:
        interpolation = cv2.INTER_AREA
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=interpolation)


def titled(picture: np.ndarray, title: str, letters: int = 14) -> Image.Image:
    """A picture (H, W, 3), uint8, RGB, with a title above it, in letters that its width has room for.

    Args:
        letters: Their size in pixels, at most.
    """
    out = Image.new('RGB', (picture.shape[1], picture.shape[0] + HEAD), PAPER)
    out.paste(Image.fromarray(picture), (0, HEAD))
    fitting = next((font(size, bold=True) for size in range(letters, 8, -1)
                    if font(size, bold=True).getlength(title) <= out.width - 4), font(8, bold=True))
    ImageDraw.Draw(out).text((2, HEAD - 4), title, 'black', fitting, 'ls')
    return out


def tile(pictures: List[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows, each in a cell of the largest one's size."""
    width = max(p.width for p in pictures) + GAP
    height = max(p.height for p in pictures) + GAP
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new('RGB', (columns * width - GAP, rows * height - GAP), PAPER)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


def legend(classes: Sequence[str], colours: np.ndarray, width: int) -> Image.Image:
    """Names behind squares of their colours (n, 3), uint8, in as many lines as the width needs."""
    plain = font(13)
    line, square = 20, 14
    places, x, y = [], 0, 0
    for name in classes:
        room = square + 5 + int(plain.getlength(name)) + 14
        if x and x + room > width:
            x, y = 0, y + line
        places.append((x, y))
        x += room
    out = Image.new('RGB', (width, y + line), PAPER)
    pen = ImageDraw.Draw(out)
    for (x, y), name, colour in zip(places, classes, colours):
        pen.rectangle([x, y + 2, x + square, y + 2 + square], tuple(colour.tolist()), 'black')
        pen.text((x + square + 5, y + 1), name, 'black', plain)
    return out


def above_legend(pictures: List[Image.Image], classes: Sequence[str], colours: np.ndarray) -> Image.Image:
    """Pictures side by side over the names of classes and their colours (n, 3), uint8."""
    row = tile(pictures, len(pictures))
    names = legend(classes, colours, row.width)
    out = Image.new('RGB', (row.width, row.height + GAP + names.height), PAPER)
    out.paste(row, (0, 0))
    out.paste(names, (0, row.height + GAP))
    return out

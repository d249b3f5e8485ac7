"""mIoU by NumPy alone, from label maps that `tools/test.py --out DIR` wrote: a check of mmseg's number.

    python benchmarks/check_miou.py work_dirs/camvid_cmt_ti/label_maps data/camvid_ade/annotations/test \
        --classes 11

Both folders hold PNGs of the same names with 1 for the first class; 0 is void and does not count.
"""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('predictions', type=Path)
parser.add_argument('truth', type=Path)
parser.add_argument('--classes', type=int, required=True)
args = parser.parse_args()

confusion = np.zeros((args.classes, args.classes), np.int64)  # truth x prediction
for path in sorted(args.predictions.glob('*.png')):
    found, real = (np.array(Image.open(p)).astype(int) for p in (path, args.truth / path.name))
    counts = real > 0
    np.add.at(confusion, (real[counts] - 1, found[counts] - 1), 1)
both = np.diag(confusion)
iou = both / (confusion.sum(0) + confusion.sum(1) - both)
print(f'mIoU {100 * np.nanmean(iou):.2f} over {len(list(args.predictions.glob("*.png")))} images; by class '
      + ' '.join(f'{100 * x:.1f}' for x in iou))

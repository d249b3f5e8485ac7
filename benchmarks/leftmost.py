"""Sorts drawn scenes by the class of their leftmost object: `python benchmarks/leftmost.py SCENES OUT`.

What a classifier of OUT must know is not what there is, but where: where each object is, seen from the
others. SCENES is what tools/make_shapes.py wrote; OUT gets a folder for each class in `train` and `val`.
"""
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

MARGIN = 0.06  # of the width, by which the leftmost centre must lead; other scenes are left out

scenes, out = map(Path, sys.argv[1:])
for split in ('train', 'val'):
    coco = json.loads((scenes / f'annotations/{split}.json').read_text())
    names = {c['id']: c['name'] for c in coco['categories']}
    objects = defaultdict(list)
    for a in coco['annotations']:
        objects[a['image_id']].append((a['bbox'][0] + a['bbox'][2] / 2, names[a['category_id']]))
    kept = 0
    for image in coco['images']:
        (first, name), (second, _), *_ = sorted(objects[image['id']])
        if second - first > MARGIN * image['width']:
            (out / split / name).mkdir(parents=True, exist_ok=True)
            os.link(scenes / 'images' / split / image['file_name'], out / split / name / image['file_name'])
            kept += 1
    print(f'{split}: {kept} of {len(coco["images"])} scenes')

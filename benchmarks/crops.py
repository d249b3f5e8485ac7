"""Sorts what is drawn in scenes by its class: `python benchmarks/crops.py SCENES OUT`.

SCENES is what tools/make_shapes.py wrote. OUT gets a folder for each class, with a square cut out around
each object of the training scenes: a data set for a classifier, which saw neither boxes nor other scenes.
"""
import json
import sys
from collections import defaultdict
from pathlib import Path

from PIL import Image

MARGIN = 1.2  # of the longer side of the box

scenes, out = map(Path, sys.argv[1:])
coco = json.loads((scenes / 'annotations/train.json').read_text(encoding='utf-8'))
names = {c['id']: c['name'] for c in coco['categories']}
objects = defaultdict(list)
for a in coco['annotations']:
    objects[a['image_id']].append(a)
for image in coco['images']:
    picture = Image.open(scenes / 'images/train' / image['file_name'])
    for a in objects[image['id']]:
        x, y, width, height = a['bbox']
        half = MARGIN * max(width, height) / 2
        centre = x + width / 2, y + height / 2
        box = [round(c + sign * half) for sign in (-1, 1) for c in centre]
        folder = out / names[a['category_id']]
        folder.mkdir(parents=True, exist_ok=True)
        picture.crop(box).save(folder / f'{a["id"]:06}.jpg', quality=95)
print(f'{out}: {len(coco["annotations"])} objects of {len(names)} classes')

"""Draws what a model finds in photos: `python tools/image_demo.py IMAGES... CONFIG CHECKPOINT --out DIR`.

A file of tools/export_onnx.py may stand in the place of config and checkpoint: `IMAGES... FILE.onnx --out DIR`.
IMAGES are files, folders or patterns such as 'photos/*.jpg', videos, or the number of a webcam (0; Ctrl-C
ends it). Detectors draw boxes and, where they have them, masks; segmentors lay the colours of the classes
over the photo, with their names below. Each photo becomes DIR/<name of the image>.png, each video a .mp4.
"""
import argparse
import json
import sys
from pathlib import Path

from mmengine.config import DictAction
from tqdm import tqdm

from cmt_backbones.openmmlab.matching import ModelError
from cmt_backbones.prediction import Records, load_model
from cmt_backbones.visualization.panels import DrawingError
from cmt_backbones.visualization.photos import find_images
from cmt_backbones.visualization.videos import draw_video, is_video


class ImagesAndModel(argparse.Action):
    """Parts `IMAGES... CONFIG CHECKPOINT` or `IMAGES... FILE.onnx`."""

    def __call__(self, parser, namespace, values, option_string=None):
        count = 1 if values[-1].endswith('.onnx') else 2
        if len(values) <= count:
            parser.error('the following arguments are required: IMAGES, and CONFIG CHECKPOINT or FILE.onnx')
        namespace.images, namespace.model = values[:-count], [*values[-count:], None][:2]
        namespace.config = None if count == 1 else values[-2]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', nargs='+', action=ImagesAndModel, metavar='IMAGES... CONFIG CHECKPOINT',
                        help='files, folders, patterns, videos, a webcam; then a config, and a file or URL')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='leave out what a detector is less sure of (default: %(default)s)')
    parser.add_argument('--json', action='store_true', help="write DIR/predictions.json, in COCO's form, too")
    parser.add_argument('--csv', action='store_true', help='write DIR/predictions.csv, a line for each object, too')
    parser.add_argument('--frames', type=int, help='of a video or webcam, at most')
    parser.add_argument('--device', help='such as cuda:0; a GPU, where there is one, by default')
    parser.add_argument('--deploy', action='store_true', help='fold the backbone for inference first')
    parser.add_argument('--amp', action='store_true', help='mixed precision: fp16 on a GPU, bf16 on a CPU that has it')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    videos = [name for name in args.images if is_video(name)]
    try:
        images = find_images([name for name in args.images if name not in videos])
        model = load_model(*args.model, args.device, args.deploy, args.cfg_options, args.amp)
        records = Records(model.classes)
        args.out.mkdir(parents=True, exist_ok=True)
        for stem, path in tqdm(images.items(), 'drawing', unit='image', disable=not images):
            found = model.predict(path, args.score_thr)
            found.draw().save(args.out / f'{stem}.png')
            records.add(found)
        for name in videos:
            out = args.out / (f'webcam_{name}.mp4' if name.isdigit() else f'{Path(name).stem}.mp4')
            draw_video(name, out, lambda frame: model.predict(frame, args.score_thr).draw(), args.frames)
        if args.json:
            (args.out / 'predictions.json').write_text(json.dumps(records.as_coco()), encoding='utf-8')
        if args.csv:
            records.write_csv(args.out / 'predictions.csv')
    except (ModelError, DrawingError, OSError) as error:
        sys.exit(f'image_demo: {error}')
    print(f'{args.out}: {len(images)} pictures, {len(videos)} videos')


if __name__ == '__main__':
    main()

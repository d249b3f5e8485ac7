"""Draws what a backbone sees: `python tools/draw_feature_maps.py CONFIG CHECKPOINT IMAGE --out PNG`.

Beside the image stand the maps of the four stages; what their colours mean is told in
cmt_backbones/visualization/feature_maps.py.
"""
import sys

from cmt_backbones.openmmlab.inference import ModelError, build_model, read_config
from cmt_backbones.visualization.feature_maps import draw, stage_maps
from cmt_backbones.visualization.one_image import parser_of_one_image, read_image
from cmt_backbones.visualization.panels import DrawingError


def main(argv=None):
    args = parser_of_one_image(__doc__.splitlines()[0]).parse_args(argv)
    try:
        image = read_image(args.image)
        model = build_model(read_config(args.config, args.cfg_options), args.checkpoint, args.device)
        draw(image, stage_maps(model, image), args.out)
    except (ModelError, DrawingError, OSError, ValueError) as error:  # the last of a picture format that is none
        sys.exit(f'draw_feature_maps: {error}')
    print(args.out)


if __name__ == '__main__':
    main()

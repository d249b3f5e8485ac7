"""Draws where CMT attends: `python tools/draw_attention.py CONFIG CHECKPOINT IMAGE --point X Y --out PNG`.

From the point, in pixels of the image: the attention of each head of a block, what content and position bias make
of it alone, or all blocks of a stage beside one another. What the pictures have is told in
cmt_backbones/visualization/attention_maps.py; tools/web_demo.py shows them in a browser, for points to click.
"""
import sys

from cmt_backbones.openmmlab.inference import ModelError, build_model, read_config
from cmt_backbones.visualization.attention_maps import Attention, draw
from cmt_backbones.visualization.one_image import parser_of_one_image, read_image
from cmt_backbones.visualization.panels import DrawingError


def main(argv=None):
    parser = parser_of_one_image(__doc__.splitlines()[0])
    parser.add_argument('--point', type=float, nargs=2, required=True, metavar=('X', 'Y'), help='in pixels')
    parser.add_argument('--stage', type=int, default=3, help='from 1 to 4 (default: %(default)s)')
    parser.add_argument('--block', type=int, help='from 1; without it the means over heads of all blocks')
    args = parser.parse_args(argv)
    try:
        image = read_image(args.image)
        height, width = image.shape[:2]
        if not (0 <= args.point[0] < width and 0 <= args.point[1] < height):
            sys.exit(f'draw_attention: the point lies outside of the image, which is {width} x {height}')
        model = build_model(read_config(args.config, args.cfg_options), args.checkpoint, args.device)
        attention = Attention(model, image)
        depths = attention.depths
        if not 1 <= args.stage <= len(depths) or (
                args.block is not None and not 1 <= args.block <= depths[args.stage - 1]):
            sys.exit(f'draw_attention: the stages 1 to {len(depths)} have {depths} blocks, counted from 1')
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draw(attention, image, args.point, args.stage - 1, args.block and args.block - 1).save(args.out)
    except (ModelError, DrawingError, OSError, ValueError) as error:  # the last of a picture format that is none
        sys.exit(f'draw_attention: {error}')
    print(args.out)


if __name__ == '__main__':
    main()

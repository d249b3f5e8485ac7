"""Shows what a model does with photos of yours, in a browser: `python tools/web_demo.py CONFIG CHECKPOINT`.

Predictions with a slider for their score, the maps of the four stages, and, from a point that is clicked, where
each block and head of CMT attends, by its content and by its position bias. A file of tools/export_onnx.py may
stand in the place of config and checkpoint, for predictions alone. `--compare CONFIG CHECKPOINT` gives another
model to switch to. The page is for this machine alone unless --host says otherwise, and asks no other for anything.
"""
import argparse
import sys

from cmt_backbones.openmmlab.matching import ModelError
from cmt_backbones.prediction import load_model
from cmt_backbones.visualization.panels import DrawingError
from cmt_backbones.visualization.web_demo import build, check_gradio, launch, names_of


class Model(argparse.Action):
    """`CONFIG CHECKPOINT`, or `FILE.onnx`; the first model comes before those to compare."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2 or len(values) == 1 and values[0].endswith('.py'):
            parser.error(f'give CONFIG CHECKPOINT or FILE.onnx, not {" ".join(values)}')
        namespace.models.insert(0 if option_string is None else len(namespace.models), values)
        namespace.config = values[0] if len(values) == 2 else namespace.config


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.set_defaults(models=[], config=None)
    parser.add_argument('model', nargs='+', action=Model, metavar='CONFIG CHECKPOINT',
                        help='a config, and a file or URL; or an exported file alone')
    parser.add_argument('--compare', nargs='+', action=Model, metavar='CONFIG CHECKPOINT', default=[],
                        help='another model to switch to; may be repeated')
    parser.add_argument('--device', help='such as cuda:0; a GPU, where there is one, by default')
    parser.add_argument('--deploy', action='store_true', help='fold the backbones for inference first')
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 for whoever reaches this machine '
                        '(default: %(default)s)')
    parser.add_argument('--port', type=int, help='default: the first free one from 7860 on')
    args = parser.parse_args(argv)
    try:
        check_gradio()
        models = [load_model(*model, device=args.device, deploy=args.deploy) for model in args.models]
        page = build(dict(zip(names_of(args.models), models)))
        print(f'{launch(page, args.host, args.port)} (Ctrl-C ends it)', flush=True)
    except (ModelError, DrawingError, OSError) as error:
        sys.exit(f'web_demo: {error}')
    page.block_thread()


if __name__ == '__main__':
    main()

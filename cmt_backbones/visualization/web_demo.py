"""A page to try models on: predictions, the maps of the stages, and where CMT attends. By gradio, on this machine.

What it shows is computed in :mod:`.explorer`. Nothing is asked of another host: no fonts, scripts, counts or newer
versions.
"""
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..openmmlab.matching import ModelError
from .explorer import Explorer, read_photo
from .panels import DrawingError

LIMIT = '100mb'  # of a file
HEAD = """# {title}
Drop a photo. Then click a point of it to see where the attention of CMT goes from there."""
OF_STAGES = """The maps that the backbone gives, their first three principal components as red, green and blue: places
of one colour have similar features. Colours of different stages have nothing to do with one another."""
OF_ATTENTION = """**both** is the attention, softmax(q·k/√d + bias); **content** is softmax(q·k/√d), and **bias** is
softmax(bias), which depends on the places alone and is one for all blocks of a stage. The number tells how many
times even attention the brightest place gets; even attention has a third of the brightness or less. One cell is a
key, 32 x 32 pixels of what the model is given. A bias that was trained little shows the noise that it starts as."""
CSS = """
.gradio-container {max-width: 1500px !important; margin: auto}
.problem {color: #b91c1c; font-weight: 600}
#photo img {cursor: crosshair}
#model label {width: 100%; overflow-wrap: anywhere}
#drawn, #maps, #attention {padding-top: 26px}
#drawn .image-container, #maps .image-container, #attention .image-container {position: static}
"""
ERRORS = (ModelError, DrawingError, ValueError)


def check_gradio() -> None:
    """Raises DrawingError, with what to do, unless gradio 6 is there."""
    if find_spec('gradio') is None:
        raise DrawingError('the page needs gradio, which is not installed: pip install "gradio>=6,<7" '
                           '(Python 3.10 or later)')
    import gradio
    if int(gradio.__version__.split('.')[0]) < 6:
        raise DrawingError(f'the page needs gradio 6 and here is {gradio.__version__}: pip install "gradio>=6,<7"')


def build(models: Dict[str, Any], title: str = 'Try a model') -> Any:
    """The page, a ``gradio.Blocks``.

    Args:
        models: As from :func:`cmt_backbones.load_model`, by the names to choose between.
        title: What it is headed by.
    """
    check_gradio()
    import gradio as gr
    explorer = Explorer(models)
    names = [*models]
    hidden = gr.update(value=None, visible=False)

    def shown(compute: Any) -> Tuple[Any, str]:
        """A picture and no word, or why there is none."""
        try:
            return gr.update(value=compute(), visible=True), ''
        except ERRORS as error:
            return hidden, problem(error)

    def opened(file: Optional[dict]) -> tuple:
        """A photo from what the browser has sent; the point of an earlier one is gone."""
        if not file:
            return None, None, ''
        try:
            read = read_photo(file['path'], file.get('orig_name') or 'the photo')
        except DrawingError as error:
            return None, None, problem(error)
        return read, None, read.said

    def predicted(photo: Any, name: str, score_thr: float) -> tuple:
        if photo is None:
            return hidden, gr.update(visible=False), gr.update(), ''
        rows: list = []

        def draw() -> Any:
            picture, found = explorer.predictions(name, photo, score_thr)
            rows.extend(found)
            return picture

        picture, said = shown(draw)
        segmentor = bool(rows) and len(rows[0]) == 2
        headers = ['class', 'share'] if segmentor else ['class', 'score', 'x1', 'y1', 'x2', 'y2']
        table = gr.update(value=dict(headers=headers, data=rows), visible=not said)
        return picture, table, gr.update(visible=not segmentor), said

    def redrawn(photo: Any, name: str, score_thr: float) -> tuple:
        picture, table, _, said = predicted(photo, name, score_thr)
        return picture, table, said

    def staged(photo: Any, name: str) -> tuple:
        if photo is None:
            return hidden, 'Drop a photo first.'
        picture, said = shown(lambda: explorer.stages(name, photo))
        return picture, said or OF_STAGES

    def attended(photo: Any, name: str, point: Any, stage: int, block: Any) -> tuple:
        if photo is None or point is None:
            return hidden, 'Drop a photo first.' if photo is None else 'Click a point of the photo.'
        depths = explorer.depths(name)
        stage = min(stage, len(depths) - 1) if depths else 0
        block = None if block == 'all' or not depths else min(int(block), depths[stage]) - 1
        picture, said = shown(lambda: explorer.attention(name, photo, point, stage, block))
        return picture, said or OF_ATTENTION

    def choices(name: str, stage: int) -> tuple:
        """The stages and blocks of a model."""
        depths = explorer.depths(name)
        if not depths:
            return gr.update(visible=False), gr.update(visible=False)
        stage = min(stage, len(depths) - 1)
        return (gr.update(choices=[(f'{i + 1}', i) for i in range(len(depths))], value=stage, visible=True),
                gr.update(choices=['all', *(str(i + 1) for i in range(depths[stage]))], value='all', visible=True))

    def clicked(photo: Any, place: gr.SelectData) -> tuple:
        if photo is None:
            return None, gr.update()
        return [at * photo.scale for at in place.index], gr.Tabs(selected='attention')

    stages, blocks = choices(names[0], 2)
    with gr.Blocks(analytics_enabled=False, title=title, delete_cache=(3600, 3600)) as page:
        photo, point = gr.State(), gr.State()
        gr.Markdown(HEAD.format(title=title))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                upload = gr.Image(label='photo', image_mode=None, sources=['upload', 'clipboard'], buttons=[],
                                  elem_id='photo')
                said = gr.Markdown(elem_id='said')
                model = gr.Radio(names, value=names[0], label='model', elem_id='model')
                threshold = gr.Slider(0, 1, .3, step=.01, label='score of at least', elem_id='threshold')
            with gr.Column(scale=5), gr.Tabs() as tabs:
                with gr.Tab('Predictions', id='predictions'):
                    told = gr.Markdown()
                    drawn = gr.Image(show_label=False, format='jpeg', buttons=['fullscreen', 'download'],
                                     visible=False, elem_id='drawn')
                    table = gr.Dataframe(visible=False, show_label=False, elem_id='table', interactive=False)
                with gr.Tab('Stages', id='stages'):
                    maps = gr.Image(show_label=False, format='png', buttons=['fullscreen', 'download'],
                                    visible=False, elem_id='maps')
                    of_stages = gr.Markdown('Drop a photo first.')
                with gr.Tab('Attention', id='attention'):
                    with gr.Row():
                        stage = gr.Radio(stages.get('choices', []), value=stages.get('value'), label='stage',
                                         visible=stages['visible'], scale=1, min_width=300, elem_id='stage')
                        block = gr.Radio(blocks.get('choices', []), value=blocks.get('value'), label='block',
                                         visible=blocks['visible'], scale=4, elem_id='block')
                    attention = gr.Image(show_label=False, format='png', buttons=['fullscreen', 'download'],
                                         visible=False, elem_id='attention')
                    of_attention = gr.Markdown('Drop a photo first.')

        predict = dict(fn=predicted, inputs=[photo, model, threshold], outputs=[drawn, table, threshold, told])
        look = dict(fn=staged, inputs=[photo, model], outputs=[maps, of_stages])
        attend = dict(fn=attended, inputs=[photo, model, point, stage, block], outputs=[attention, of_attention])
        options = dict(fn=choices, inputs=[model, stage], outputs=[stage, block])
        (upload.change(opened, upload, [photo, point, said], preprocess=False).then(**predict).then(**look)
         .then(**attend))
        model.input(**predict).then(**options).then(**look).then(**attend)
        threshold.change(redrawn, [photo, model, threshold], [drawn, table, told], trigger_mode='always_last',
                         show_progress='hidden')
        upload.select(clicked, photo, [point, tabs]).then(**attend)
        stage.input(**options).then(**attend)
        block.input(**attend)
    return page


def problem(error: Exception) -> str:
    return f'<span class="problem">{error}</span>'


def launch(page: Any, host: str = '127.0.0.1', port: Optional[int] = None) -> str:
    """Serves a page of :func:`build` from threads of this process; returns its address.

    Args:
        host: ``'0.0.0.0'`` for all who reach this machine.
        port: By default the first free one from 7860 on.

    Raises:
        DrawingError: The port is taken.
    """
    import gradio as gr
    # gradio asks its own server whether it is up, which a proxy for the outside could not answer.
    for name in ('no_proxy', 'NO_PROXY'):
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), '127.0.0.1,localhost']))
    try:
        page.launch(server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
                    inbrowser=False, ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False,
                    run_history=False, footer_links=[], show_error=True, max_file_size=LIMIT, css=CSS,
                    theme=gr.themes.Default())
    except OSError as error:
        raise DrawingError(f'cannot serve on {host}, port {port or "7860 and after"}: {error}. Give another --port'
                           ) from None
    return f'http://{"127.0.0.1" if host == "0.0.0.0" else host}:{page.server_port}'



def names_of(models: Sequence[Sequence[str]]) -> List[str]:
    """A short name for each CONFIG CHECKPOINT or FILE, numbered where they would be the same."""
    short = [', '.join([*(Path(part).name for part in model[:-1]), '/'.join(Path(model[-1]).parts[-2:])])
             for model in models]
    return short if len({*short}) == len(short) else [f'{i}. {name}' for i, name in enumerate(short, 1)]

"""A page to try models on: predictions, the maps of the stages, and where CMT attends. By gradio, on this machine.

What it shows is computed in :mod:`.explorer`. Nothing is asked of another host: no fonts, scripts, counts or newer
versions.
"""
import contextlib
import logging
import os
from html import escape
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ..openmmlab.matching import ModelError
from .explorer import Explorer, Photo, read_photo
from .panels import DrawingError

LIMIT = '100mb'  # of a file
HEAD = """# {title}
Drop a photo. Then click a point of it to see where the attention of CMT goes from there."""
OF_STAGES = """The maps that the backbone gives, their first three principal components as red, green and blue: places
of one colour have similar features. Colours of different stages have nothing to do with one another."""
OF_ATTENTION = """**both** is the attention, softmax(q·k/√d + bias); **content** is softmax(q·k/√d), and **bias** is
softmax(bias), which depends on the places alone and is one for all blocks of a stage. The number tells how many
times even attention the brightest place gets; even attention is dark. One cell is a
key, 32 x 32 pixels of what the model is given. A bias that was trained little shows the noise that it starts as."""
CSS = """
.gradio-container {width: 100%; max-width: 1500px !important; margin: auto}
.problem {color: #b91c1c; font-weight: 600}
#photo img {cursor: crosshair}
#model label {width: 100%; overflow-wrap: anywhere}
#rows {max-height: 480px; overflow-y: auto}
#rows :is(table, tr) {border: 0 !important}
#rows table {border-collapse: collapse; font-variant-numeric: tabular-nums}
#rows :is(th, td) {padding: 3px 28px 3px 0; text-align: left; border: 0; border-bottom: 1px solid #8884}
#drawn, #maps, #attention {padding-top: 26px}
#drawn .image-container, #maps .image-container, #attention .image-container {position: static}
"""
FIRST, ALL = 'Drop a photo first.', 'all'
ERRORS = (ModelError, DrawingError, ValueError)  # the last of images that are too small for a backbone


def check_gradio() -> None:
    """Raises DrawingError, with what to do, unless gradio 6 is there."""
    wanted = 'pip install "gradio>=6,<7" (Python 3.10 or later)'
    try:
        import gradio
    except ImportError as error:
        raise DrawingError(f'the page needs gradio, which cannot be imported ({error}): {wanted}') from None
    if gradio.__version__.split('.')[0] != '6':
        raise DrawingError(f'the page needs gradio 6, and here is {gradio.__version__}: {wanted}')


class Answers:
    """What the page answers to its events: values and updates for gradio's components."""

    def __init__(self, explorer: Explorer) -> None:
        import gradio
        self.explorer, self.update = explorer, gradio.update

    def opened(self, file: Optional[dict]) -> tuple:
        """The photo of a file as the browser has sent it; no point; what to say of it."""
        if not file:
            return None, None, ''
        try:
            photo = read_photo(file['path'], file.get('orig_name') or 'the photo')
        except DrawingError as error:
            return None, None, problem(error)
        return photo, None, photo.said

    def predicted(self, photo: Optional[Photo], name: str, score_thr: float) -> tuple:
        """Picture, table, what to say of them, and the slider, which a segmentor has no use for."""
        hidden = self.update(visible=False)
        if photo is None:
            return hidden, hidden, FIRST, self.update()
        try:
            found = self.explorer.predictions(name, photo, score_thr)
        except ERRORS as error:
            return hidden, hidden, problem(error), self.update()
        return (self.update(value=found.picture, visible=True),
                self.update(value=table(found.headers, found.rows), visible=bool(found.rows)), found.said,
                self.update(visible='score' in found.headers))

    def redrawn(self, *inputs: Any) -> tuple:
        """The same without the slider, which moves."""
        return self.predicted(*inputs)[:3]

    def staged(self, photo: Optional[Photo], name: str) -> tuple:
        """The picture of the stages, and what to say of it."""
        if photo is None:
            return self.update(visible=False), FIRST
        return self.picture(lambda: self.explorer.stages(name, photo), OF_STAGES)

    def attended(self, photo: Optional[Photo], name: str, point: Optional[List[float]], stage: Optional[int],
                 block: Optional[str]) -> tuple:
        """The picture of a point's attention, and what to say of it; blocks count from 1 here."""
        if photo is None or point is None:
            return self.update(visible=False), FIRST if photo is None else 'Click a point of the photo.'
        one = None if block in (None, ALL) else int(block) - 1
        return self.picture(lambda: self.explorer.attention(name, photo, point, stage or 0, one), OF_ATTENTION)

    def picture(self, compute: Callable[[], Any], said: str) -> tuple:
        try:
            return self.update(value=compute(), visible=True), said
        except ERRORS as error:
            return self.update(visible=False), problem(error)

    def choices(self, name: str, stage: Optional[int]) -> Tuple[dict, dict]:
        """The stages and blocks of a model to choose from."""
        depths = self.explorer.depths(name)
        stage = min(2 if stage is None else stage, len(depths) - 1)
        blocks = [ALL, *(str(i + 1) for i in range(depths[stage]))] if depths else []
        return (dict(choices=[(str(i + 1), i) for i in range(len(depths))], value=stage if depths else None,
                     visible=bool(depths)), dict(choices=blocks, value=ALL if depths else None, visible=bool(depths)))

    def chosen(self, *inputs: Any) -> tuple:
        return tuple(self.update(**options) for options in self.choices(*inputs))

    def clicked(self, photo: Optional[Photo], place: Sequence[int]) -> Optional[List[float]]:
        """A point of the file as one of the photo that models get."""
        return None if photo is None else [at * photo.scale for at in place]


def build(models: Dict[str, Any], title: str = 'Try a model') -> Any:
    """The page, a ``gradio.Blocks``.

    Args:
        models: As from :func:`cmt_backbones.load_model`, by the names to choose between.
        title: What it is headed by.
    """
    check_gradio()
    import gradio as gr
    answers, names = Answers(Explorer(models)), [*models]
    stages, blocks = answers.choices(names[0], None)
    shown = dict(show_label=False, visible=False, buttons=['fullscreen', 'download'])

    with gr.Blocks(analytics_enabled=False, title=title, delete_cache=(3600, 3600)) as page:
        photo, point = gr.State(), gr.State()
        gr.Markdown(HEAD.format(title=title))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                upload = gr.Image(label='photo', image_mode=None, sources=['upload', 'clipboard'], buttons=[],
                                  elem_id='photo')
                of_photo = gr.Markdown(elem_id='of_photo')
                model = gr.Radio(names, value=names[0], label='model', elem_id='model')
                threshold = gr.Slider(0, 1, .3, step=.01, label='score of at least', elem_id='threshold')
            with gr.Column(scale=5), gr.Tabs() as tabs:
                with gr.Tab('Predictions', id='predictions'):
                    drawn = gr.Image(format='jpeg', elem_id='drawn', **shown)
                    of_drawn = gr.Markdown(FIRST, elem_id='of_drawn')
                    rows = gr.HTML(visible=False, elem_id='rows')
                with gr.Tab('Stages', id='stages'):
                    maps = gr.Image(format='png', elem_id='maps', **shown)
                    of_maps = gr.Markdown(FIRST, elem_id='of_maps')
                with gr.Tab('Attention', id='attention'):
                    with gr.Row():
                        stage = gr.Radio(label='stage', min_width=300, scale=1, elem_id='stage', **stages)
                        block = gr.Radio(label='block', scale=4, elem_id='block', **blocks)
                    attention = gr.Image(format='png', elem_id='attention', **shown)
                    of_attention = gr.Markdown(FIRST, elem_id='of_attention')

        def clicked(opened: Any, place: gr.SelectData) -> tuple:
            return answers.clicked(opened, place.index), gr.Tabs(selected='attention')

        predict = dict(fn=answers.predicted, inputs=[photo, model, threshold],
                       outputs=[drawn, rows, of_drawn, threshold], show_progress_on=drawn)
        look = dict(fn=answers.staged, inputs=[photo, model], outputs=[maps, of_maps], show_progress_on=maps)
        attend = dict(fn=answers.attended, inputs=[photo, model, point, stage, block],
                      outputs=[attention, of_attention], show_progress_on=attention)
        choose = dict(fn=answers.chosen, inputs=[model, stage], outputs=[stage, block])
        (upload.change(answers.opened, upload, [photo, point, of_photo], preprocess=False).then(**predict)
         .then(**look).then(**attend))
        upload.select(clicked, photo, [point, tabs]).then(**attend)
        model.input(**predict).then(**choose).then(**look).then(**attend)
        threshold.change(answers.redrawn, [photo, model, threshold], [drawn, rows, of_drawn],
                         trigger_mode='always_last', show_progress='hidden')
        stage.input(**choose).then(**attend)
        block.input(**attend)
    return page


def problem(error: Exception) -> str:
    return f'<span class="problem">{escape(str(error))}</span>'


def table(headers: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Rows as a table of HTML."""
    lines = [''.join(f'<th>{escape(header)}</th>' for header in headers)]
    lines += [''.join(f'<td>{escape(str(value))}</td>' for value in row) for row in rows]
    return f'<table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


@contextlib.contextmanager
def logs_kept_open() -> Iterator[None]:
    """The server configures logging as it starts, which closes every log of the process, a training's among them."""
    others = logging._handlerList[:]
    logging._handlerList.clear()
    try:
        yield
    finally:
        logging._handlerList[:0] = others


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
        with logs_kept_open():
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

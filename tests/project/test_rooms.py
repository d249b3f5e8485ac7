"""The order of the package's rooms: who may import whom, no circles, and no file that is too long."""
import ast
import re
import subprocess
import sys

import pytest

from tool import ROOT

PACKAGE = ROOT / 'cmt_backbones'
# What each room may import of the package, itself aside; a file beside the rooms is one of its own.
MAY_IMPORT = {
    'versions': set(),
    'registration': set(),
    'weights': set(),
    'models': {'weights', 'registration', 'versions'},
    'classifier': {'models'},
    'openmmlab': {'models', 'weights', 'registration'},
    'data': set(),
    'training': {'data', 'openmmlab', 'models', 'weights', 'registration'},  # classifiers are trained on data
    'analysis': {'openmmlab', 'models', 'weights', '__init__'},  # the version
    'visualization': {'openmmlab', 'models'},
    'export': {'data', 'openmmlab', 'models', 'weights', '__init__'},  # a drawn scene; the version
    'report': {'analysis', 'visualization', 'openmmlab', '__init__'},  # the version
    'prediction': {'visualization', 'openmmlab', 'export'},  # what is found in an image, in three lines
    '__init__': {'versions', 'registration', 'models', 'training', 'openmmlab'},
    '__main__': {'__init__', 'models', 'openmmlab'},
}
# Beside torch, numpy, mmengine and Python's own; of `models` what classifier.py alone may have.
OTHERS = {
    'weights': {'safetensors', 'filelock', 'huggingface_hub', 'timm'},  # filelock is torch's; the rest for names
    'models': {'timm'},
    'openmmlab': {'mmcv', 'mmdet', 'mmseg', 'pkg_resources', 'torchvision'},
    'data': {'cv2', 'tqdm', 'timm', 'torchvision', 'PIL', 'pycocotools'},
    'training': {'timm', 'tqdm'},
    'analysis': {'matplotlib', 'mmdet', 'mmseg', 'timm', 'tqdm'},
    'visualization': {'cv2', 'gradio', 'matplotlib', 'mmseg', 'PIL', 'pycocotools', 'tqdm'},
    'export': {'mmcv', 'mmdet', 'mmseg', 'onnx', 'onnx_ir', 'onnxruntime', 'onnxscript', 'openvino', 'torchvision',
               'cv2', 'PIL', 'safetensors', 'tqdm'},
    'report': {'cv2', 'jinja2', 'plotly', 'pycocotools', 'tqdm'},
    'prediction': {'cv2', 'PIL', 'pycocotools'},
    '__main__': {'mmcv'},
}
EVERYWHERE = {'torch', 'numpy', 'mmengine'}
FILES = sorted(PACKAGE.rglob('*.py'))
FILES = [path for path in FILES if '.mim' not in path.parts]


def module_of(path):
    """The dotted name of a file, of a package that of its folder."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_of(path): path for path in FILES}


def room(module):
    parts = module.split('.')
    return parts[1] if len(parts) > 1 else '__init__'


def imports(path, everywhere=True):
    """The modules that a file imports, absolute; of ours with the names that are modules themselves.

    Args:
        path: Of the file.
        everywhere: Whether imports within functions count.
    """
    tree = ast.parse(path.read_text(encoding='utf-8'))
    nodes = [*ast.walk(tree)] if everywhere else [*at_import(tree)]
    package = module_of(path).split('.')
    if path.name != '__init__.py':
        package = package[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join([*package[:len(package) - node.level + 1], *filter(None, [node.module])]
                            if node.level else [node.module])
            names = [f'{base}.{alias.name}' for alias in node.names]
            inner = [name for name in names if name in MODULES]
            yield from inner
            if len(inner) < len(names):
                yield base


def at_import(node):
    """The nodes that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from at_import(child)


def ours(names):
    return {name for name in names if name.split('.')[0] == 'cmt_backbones'}


def test_the_rooms_are_known():
    assert {room(name) for name in MODULES} <= set(MAY_IMPORT)
    assert len(FILES) > 35


@pytest.mark.parametrize('name', MODULES)
def test_a_room_imports_only_what_stands_below_it(name):
    path, here = MODULES[name], room(name)
    found = {*imports(path)}
    assert {room(other) for other in ours(found)} - {here} <= MAY_IMPORT[here]
    roots = {other.split('.')[0] for other in found - ours(found)} - EVERYWHERE
    allowed = OTHERS.get(here, set())
    if here == 'models' and name != 'cmt_backbones.models.classifier':
        allowed = set()
    assert {root for root in roots if not is_of_python(root)} <= allowed


def is_of_python(name):
    return name in sys.stdlib_module_names or name.startswith('_')


def test_the_rooms_stand_in_an_order():
    """Without a circle of permissions there is none of imports between rooms."""
    assert not circle(MAY_IMPORT)


def test_no_module_needs_itself_to_be_imported():
    """Also within a room. What a module imports comes after the packages around that, which run first."""
    graph = {}
    for name, path in MODULES.items():
        needed = {parent for other in ours(imports(path, everywhere=False)) for parent in with_parents(other)}
        graph[name] = needed - {*with_parents(name)}
    assert sum(map(len, graph.values())) > 50
    assert not circle(graph)


def with_parents(name):
    parts = name.split('.')
    return ['.'.join(parts[:i]) for i in range(1, len(parts) + 1)]


def circle(graph):
    """Some nodes that lead back to the first, or None."""
    done = set()

    def visit(node, trail):
        if node in trail:
            return [*trail[trail.index(node):], node]
        if node not in done:
            for other in sorted(graph.get(node, ())):
                found = visit(other, [*trail, node])
                if found:
                    return found
            done.add(node)
        return None

    return next(filter(None, (visit(node, []) for node in graph)), None)


def test_a_circle_is_found():
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b']
    assert not circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()})


def test_importing_the_package_loads_no_heavy_room():
    code = ('import sys, cmt_backbones; '
            "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stdout); "
            "print(*(name for name in sys.modules if name.startswith('cmt_backbones.')))")
    said = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    roots, modules = (set(line.split()) for line in said.stdout.splitlines()[-2:])
    assert not roots & {'mmcv', 'mmdet', 'mmseg', 'timm', 'torchvision', 'matplotlib', 'onnx', 'pycocotools', 'plotly'}
    rooms = {room(name) for name in modules}
    assert not rooms & {'visualization', 'analysis', 'data', 'export', 'report', 'classifier'}


def test_what_few_have_is_imported_where_it_is_used():
    early = {name.split('.')[0] for path in FILES for name in imports(path, everywhere=False)}
    assert 'cv2' in early and not early & {'gradio', 'onnxruntime', 'openvino', 'huggingface_hub'}


def test_a_file_has_one_idea_and_a_command_is_short():
    def too_long(paths, limit):
        return {path.name: n for path in paths if (n := len(path.read_text(encoding='utf-8').splitlines())) > limit}

    assert not too_long(FILES, 320)
    commands = [path for path in (ROOT / 'tools').iterdir() if path.is_file() and not path.name.startswith('setup_')]
    assert len(commands) > 15 and not too_long(commands, 80)


def test_commands_import_no_other_command_and_tests_reach_into_none():
    names = {path.stem for path in (ROOT / 'tools').glob('*.py')}
    others = names - {'test', 'setup_checks'}  # Python's own, too; a part of setup_env
    for path in (ROOT / 'tools').glob('*.py'):
        assert not {name.split('.')[0] for name in imports_of_script(path)} & others, path.name
    for path in (ROOT / 'tests').rglob('*.py'):
        text = path.read_text(encoding='utf-8')
        used = re.findall(r"\bload\('(\w+)'\)\.(\w+)", text)
        for variable, command in re.findall(r"^(\w+) = (?:tool\.)?load\('(\w+)'\)$", text, re.MULTILINE):
            used += [(command, name) for name in re.findall(rf"(?<![\w/'.-]){variable}\.(\w+)", text)]
        # setup_env runs before the package is there, and holds what it needs itself.
        assert {name for command, name in used if command != 'setup_env'} <= {'main'}, path.name
        assert not {name.split('.')[0] for name in imports_of_script(path)} & others, path.name
        assert path.name == 'test_rooms.py' or 'sys.modules.setdefault' not in text, path.name


def imports_of_script(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def test_tests_mirror_the_rooms():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').is_file()}
    folders = {path.name for path in (ROOT / 'tests').iterdir() if path.is_dir() and any(path.glob('test_*.py'))}
    assert rooms <= folders
    assert folders - rooms <= {'configs', 'project', 'export', 'stacks'}

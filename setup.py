"""The package imports torch and mmengine alone and requires neither by name: they come from
PyTorch's own instructions and, for mmengine, mmcv, mmdet and mmsegmentation, under either
the names of OpenMMLab or those of the maintained onedl-* forks, which pip cannot tell apart.
"""
import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CONTRIBUTORS = 'cmt_backbones contributors'  # as in CITATION.cff


def read(name):
    return (ROOT / name).read_text(encoding='utf-8')


def readme():
    """README.md without the links and pictures that lead into this repository: they would be dead elsewhere."""
    text = re.sub(r'!\[[^\]]*\]\((?!https?://)[^)]*\)\n?', '', read('README.md'))
    text = re.sub(r'\[([^\]]*)\]\((?!https?://)[^)]*\)', r'\1', text)
    return f'{text}\nFiles that this text names are in the source distribution.\n'


def put_mim(package, put):
    """Gives a package folder the `.mim` in which mim and mmengine look for configs and tools.

    Args:
        package (Path): The folder of cmt_backbones.
        put (callable): Makes its second argument, a path, out of its first, a file or folder.
    """
    mim = package / '.mim'
    shutil.rmtree(mim, ignore_errors=True)
    mim.mkdir(parents=True)
    for name in ('configs', 'tools', 'model-index.yml'):
        put(ROOT / name, mim / name)


def copy(source, target):
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
    else:
        shutil.copy(source, target)


def link(source, target):
    try:
        target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=source.is_dir())
    except OSError:  # Windows lets few users: the copies are as old as the installation then
        copy(source, target)


class BuildWithMim(build_py):
    """A wheel gets copies, an editable installation links where the system has them (which git ignores)."""

    def run(self):
        super().run()
        if self.editable_mode:
            put_mim(ROOT / 'cmt_backbones', link)
        else:
            put_mim(Path(self.build_lib) / 'cmt_backbones', copy)


setup(
    name='cmt_backbones',
    version=re.search(r"^__version__ = '(.+)'$", read('cmt_backbones/__init__.py'), re.MULTILINE).group(1),
    description='CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x',
    long_description=readme(),
    long_description_content_type='text/markdown',
    author=CONTRIBUTORS,
    maintainer=CONTRIBUTORS,
    keywords='object detection, semantic segmentation, CMT, ConvNeXt, mmdetection, mmsegmentation',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(8, 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.8',
    packages=find_packages(include=['cmt_backbones*']),
    package_data={'cmt_backbones': ['py.typed', *(f'report/page.{kind}' for kind in ('html', 'css', 'js'))]},
    # What single commands need beyond what trains; `make setup` installs all of it.
    extras_require={'report': ['plotly', 'jinja2', 'pycocotools'], 'demo': ['gradio'],
                    'export': ['onnx', 'onnxscript', 'onnxruntime']},
    cmdclass={'build_py': BuildWithMim},
)

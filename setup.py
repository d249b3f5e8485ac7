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
    target.symlink_to(os.path.relpath(source, target.parent))


class BuildWithMim(build_py):
    """A wheel gets copies, an editable installation links (which git ignores)."""

    def run(self):
        super().run()
        if self.editable_mode:
            put_mim(ROOT / 'cmt_backbones', link)
        else:
            put_mim(Path(self.build_lib) / 'cmt_backbones', copy)


setup(
    name='cmt_backbones',
    version=re.search(r"^__version__ = '(.+)'$", (ROOT / 'cmt_backbones/__init__.py').read_text(),
                      re.MULTILINE).group(1),
    description='CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    keywords='object detection, semantic segmentation, CMT, ConvNeXt, mmdetection, mmsegmentation',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['cmt_backbones*']),
    package_data={'cmt_backbones': ['py.typed']},
    cmdclass={'build_py': BuildWithMim},
)

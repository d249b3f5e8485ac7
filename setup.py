"""The package imports torch and mmengine alone and requires neither by name: they come from
PyTorch's own instructions and, for mmengine, mmcv, mmdet and mmsegmentation, under either
the names of OpenMMLab or those of the maintained onedl-* forks, which pip cannot tell apart.
"""
from setuptools import find_packages, setup

setup(
    name='cmt_backbones',
    version='0.1.0',
    description='CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x',
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['cmt_backbones*']),
)

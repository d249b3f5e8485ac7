"""Docstrings name classes and functions as Sphinx does: checks that these are there and makes links of them.

An extension of griffe, which reads the package for mkdocstrings.
"""
import re
from contextlib import suppress
from typing import Any, Iterator

import griffe
from mkdocs.plugins import get_plugin_logger

ROLE = re.compile(r':(?:class|func|meth|mod|data|attr):`(~?)([.\w]+)`')
LAZY = {'cmt_backbones.load_model': 'cmt_backbones.prediction.load_model'}  # which __getattr__ gives: not seen here
log = get_plugin_logger('references')  # a warning fails a strict build


class References(griffe.Extension):
    """Turns `` :class:`~package.Name` `` into a link to `Name`, where the site has it, in all docstrings."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if pkg.name != 'cmt_backbones':  # mmengine, whose classes ours build on
            return
        for found in documented(pkg):
            def link(role: re.Match, found: griffe.Object = found) -> str:
                path = resolve(found, role[2], loader)
                if path is None:
                    log.warning(f'{found.filepath}: {found.path} names {role[2]}, which is not there')
                    return f'`{role[2]}`'
                name = role[2].rpartition('.')[2] if role[1] else role[2].lstrip('.')
                return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'

            found.docstring.value = ROLE.sub(link, found.docstring.value)


def documented(found: griffe.Object) -> Iterator[griffe.Object]:
    """An object and all below it that have a docstring."""
    if found.docstring:
        yield found
    for member in found.members.values():
        if not member.is_alias:
            yield from documented(member)


def resolve(found: griffe.Object, name: str, loader: griffe.GriffeLoader) -> Any:
    """The full path of what a docstring names, or None."""
    first, dot, rest = name.partition('.')
    if not first:  # .name, of the same package
        first = (found.module if found.module.is_init_module else found.module.parent).path
    else:
        with suppress(griffe.NameResolutionError):
            first = found.resolve(first)
    path = first + dot + rest
    path = LAZY.get(path, path)
    try:
        return loader.modules_collection[path].path
    except (KeyError, griffe.AliasResolutionError):
        return None

"""Docstrings, which are part of what the commands print."""

import ast
import inspect
import sys
import textwrap
from typing import Any


def docstring(thing: Any) -> str:
    """Return the docstring of a module, class or function; ``python -OO`` strips it, then from the source."""
    if sys.flags.optimize < 2:
        return inspect.cleandoc(thing.__doc__ or "")
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, SyntaxError):
        return ""
    node: Any = source if inspect.ismodule(thing) else source.body[0]
    return ast.get_docstring(node) or ""

"""jinja2's one home: self-contained HTML pages from the templates beside it.

In:  a template's name and its values.
Out: the page as text, with nothing to fetch: style and pictures are in it.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """The page of `trainer/templates/<template>`; text is escaped, `trusted` markup is not, a missing value raises."""
    return _environment().get_template(template).render(**values)


def trusted(markup: str) -> Markup:
    """Markup of our own making, such as a picture's SVG, which goes into a page as it is."""
    return Markup(markup)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("trainer", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

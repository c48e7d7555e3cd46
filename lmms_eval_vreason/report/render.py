"""Pages and Markdown, by jinja2 from ``templates/``.

In pages every text that a model, a task or a user wrote is escaped.
"""

import base64
from functools import cache
from pathlib import Path
from typing import Any

import jinja2


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("lmms_eval_vreason.report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """A file of ``templates/``, without its ``.j2``, filled in."""
    return _environment().get_template(f"{template}.j2").render(**values)


def as_data_url(image: Path) -> str:
    """A PNG file as the address of an image that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()

"""How Sphinx builds these pages: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.typing import stringify_annotation

from starlette_channels import Payload, __version__

project = "starlette_channels"
author = "the starlette_channels developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)(\w?)")
_WITH_SECTIONS = {"class", "exception", "function", "method"}


def to_restructured_text(
    _app: Sphinx, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Convert a docstring: `code` to two backticks, the sections `Args:`, `Raises:` to fields."""
    if what in _WITH_SECTIONS:
        lines[:] = GoogleDocstring(lines, Config(napoleon_use_rtype=False)).lines()
    text = _CODE.sub(
        lambda code: f"``{code[1]}``" + (rf"\ {code[2]}" if code[2] else ""), "\n".join(lines)
    )
    lines[:] = text.split("\n")


def payload_has_a_name(
    _app: Sphinx,
    _what: str,
    _name: str,
    _obj: Any,
    _options: Any,
    signature: str | None,
    result: str | None,
) -> tuple[str | None, str | None]:
    """Write `Payload` instead of all that it stands for."""
    for union in (
        stringify_annotation(Payload, "smart"),
        stringify_annotation(Payload, "fully-qualified-except-typing"),
    ):
        signature = signature and signature.replace(union, "Payload")
    return signature, result


def setup(app: Sphinx) -> None:
    """Register the above."""
    app.connect("autodoc-process-docstring", to_restructured_text)
    app.connect("autodoc-process-signature", payload_has_a_name)

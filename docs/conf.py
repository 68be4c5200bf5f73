"""How Sphinx builds these pages: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from starlette_channels import Payload, __version__

project = "starlette_channels"
author = "the starlette_channels developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_title = f"{project} {release}"
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


def docstrings_are_markdown(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Write `code` as reStructuredText does: with two backticks, and apart from what follows."""
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
    app.connect("autodoc-process-docstring", docstrings_are_markdown)
    app.connect("autodoc-process-signature", payload_has_a_name)

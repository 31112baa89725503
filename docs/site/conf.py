"""The documentation site; `make docs` builds it."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "Feedback Transformer"
version = release = importlib.metadata.version("feedback-transformer-pytorch")
copyright = "MIT licence"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_options",
    "experiment_table",
    "mathml",
]
exclude_patterns = ["figures", "extensions"]
smartquotes_action = "D"  # dashes; quotes stand in code and JSON
default_role = "py:obj"  # a name in backticks in a docstring is a link where it can be one

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say what an argument is, with its shape
napoleon_use_ivar = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = project
html_favicon = "static/favicon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

"""The site: `make docs` builds it in docs/_build, with the tutorials executed unless RUN_TUTORIALS is 0."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import zmq
from jupyter_client.manager import KernelManager

import mamltheory

project, author, copyright = "mamltheory", "The mamltheory authors", "2026, the mamltheory authors"
release = mamltheory.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "site_parts",
]
root_doc = (
    "docs/index"  # the sources are the repository, so that its documents are pages and their links hold
)
include_patterns = ["docs/**", "*.md", "experiments/README.md", "figures/**.md", "mamltheory/README.md"]
exclude_patterns = ["docs/_build", "docs/_templates"]
templates_path = [str(Path(__file__).with_name("_templates"))]
suppress_warnings = ["toc.not_included"]  # the tables of figures/ are linked to from their figures
nitpicky = True
nitpick_ignore_regex = [  # types of other libraries, and jaxtyping's shapes
    ("py:class", r"(torch|numpy|PIL|collections\.abc|pathlib|jaxtyping|matplotlib)\..+|Tensor|'.*'"),
    # Steps of the functions on the page "Parts that the reference names".
    (
        "py:func",
        "as_model|checked_samples|check_independent|with_head|default_padding|fit_predict|found_scale",
    ),
]
default_role = "code"

# The reference.
autosummary_ignore_module_all = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# The tutorials.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off" if os.environ.get("RUN_TUTORIALS") == "0" else "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # seconds a cell, for busy machines
nb_execution_in_temp = True
nb_merge_streams = True
# A kernel that talks over TCP without encryption writes a warning, one for every notebook.
if hasattr(KernelManager, "transport_encryption") and zmq.has("curve"):
    KernelManager.transport_encryption.default_value = "auto"

# The look. Formulas are MathML, which browsers draw without scripts and without a network.
html_theme = "furo"
html_title = "mamltheory"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False

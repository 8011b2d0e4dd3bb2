"""Sphinx configuration. Pages are executed at build; nothing is fetched from the network."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from jupyter_cache import get_cache

import xgfm

DOCS = Path(__file__).parent


def _code_digest() -> str:
    """Digest of the package's code: executed pages are kept as long as it stays the same."""
    files = sorted(Path(xgfm.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


project = "xgfm"
author = "The xgfm developers"
copyright = f"{datetime.now(tz=UTC).year}, {author}"
version = release = xgfm.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
default_role = "py:obj"

# Executed pages. Each runs in an empty folder of its own.
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "jupyter_cache" / _code_digest())
get_cache(nb_execution_cache_path).list_cache_records()  # makes it, before pages that run side by side each would
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"version": release}

autosummary_generate = True
autodoc_typehints = "none"  # NumPy docstrings name the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "xgfm"
html_static_path = ["_static"]
html_css_files = ["xgfm.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "tutorial": [], "tutorial-climate": [], "changelog": []}

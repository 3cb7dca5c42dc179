"""Sphinx: pip install sphinx myst-parser furo; sphinx-build docs docs/_build."""

from lopax._version import __version__

project = "lopax"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
exclude_patterns = ["_build"]

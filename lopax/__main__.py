"""`python -m lopax`."""

from lopax.cli.main import entry_point

entry_point()

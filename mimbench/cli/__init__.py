"""The command line. Each command imports what it needs when it runs, so that --help answers at once."""

from mimbench.cli import data, lists, migrate, new, pages, runs, tables, verify
from mimbench.cli.app import app

__all__ = ["app", "data", "lists", "migrate", "new", "pages", "runs", "tables", "verify"]

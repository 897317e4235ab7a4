"""`python -m mimbench`."""

from mimbench.cli import app

app(prog_name="mimbench")

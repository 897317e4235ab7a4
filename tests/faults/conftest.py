"""The command line's workspace, for the faults."""

from tests.cli.conftest import bench

__all__ = ["bench"]

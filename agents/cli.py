"""The `textrl` command."""

from __future__ import annotations

import sys

import tyro
from transformers.utils import logging

from .demo import Demo, run_demo


def main(argv: list[str] | None = None) -> None:
    """Run a subcommand; Ctrl-C ends it with a line instead of a traceback, and keeps what was finished."""
    logging.disable_progress_bar()  # a bar for every file of a small model drowns ours
    config = tyro.extras.subcommand_cli_from_dict({"demo": Demo}, args=argv)
    run_demo(config)


if __name__ == "__main__":
    sys.exit(main())

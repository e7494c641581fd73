"""`python -m textrl_env` and the console script: the command `textrl`.

It starts here and not in `agents`, so that another project's package `agents` is named as the fault.
"""

import sys

from .utils.own_packages import load


def main() -> int:
    """Run the command; return its exit status."""
    return load("agents.cli:main")()


if __name__ == "__main__":
    sys.exit(main())

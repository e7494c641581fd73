"""`python -m agents.cli`, and what `torchrun -m` starts."""

import sys

from .main import main

sys.exit(main())

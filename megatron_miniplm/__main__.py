"""`python -m megatron_miniplm` is the `miniplm` command."""

import sys

from megatron_miniplm.cli import main

if __name__ == "__main__":
    sys.exit(main())

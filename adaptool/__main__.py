"""`python -m adaptool`: the command line."""

import sys

from adaptool.cli.main import main

sys.exit(main())

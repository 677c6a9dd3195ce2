"""`python -m gateway.autoscaler.replay TRACE...`, the same as `wakegate replay`."""

import sys

from gateway.autoscaler.replay.cli import main

sys.exit(main())

"""``python -m steppe`` is the ``steppe`` command."""

from steppe.cli import main

raise SystemExit(main())

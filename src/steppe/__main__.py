"""``python -m steppe`` is the ``steppe`` command."""

from steppe.cli.main import main

raise SystemExit(main())

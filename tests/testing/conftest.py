from collections.abc import Iterator

import pytest
from support.many import POOL

from steppe.testing import CheckContext, torch_compile


@pytest.fixture(scope="session")
def lab() -> Iterator[CheckContext]:
    """One pool of processes and one network compiled by a light backend; test_inductor.py has the default one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_compile, "backend_for", lambda device: "aot_eager")
        context = CheckContext(timeout=60)
        context.pool = POOL
        yield context

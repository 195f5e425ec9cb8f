from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared cores", deadline=None)  # others' work is no reason to fail
settings.load_profile("shared cores")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data next to the repository; tests that ask for it are marked ``shared``."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs ../shared/data")
    return folder

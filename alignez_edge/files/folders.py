"""Where a user's files are, and those that ship with the package."""

from __future__ import annotations

import os
from pathlib import Path

APP = "alignez-edge"


def user_dir() -> Path:
    """The folder of the user's own data: `$ALIGNEZ_HOME`, else where the system keeps such."""
    home = os.environ.get("ALIGNEZ_HOME")
    if home:
        return Path(home)
    import platformdirs  # not for --help

    return Path(platformdirs.user_data_dir(APP, appauthor=False))


def cache_dir() -> Path:
    """The folder of what can be made again: `$ALIGNEZ_HOME/cache`, else the system's place."""
    home = os.environ.get("ALIGNEZ_HOME")
    if home:
        return Path(home) / "cache"
    import platformdirs

    return Path(platformdirs.user_cache_dir(APP, appauthor=False))


def builtin_folder() -> Path:
    """The folder of the built-in axes and profiles: the installed package, or the checkout's."""
    installed = Path(__file__).parents[1] / "profiles"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "profiles"

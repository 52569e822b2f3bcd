"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from alignez_edge.runtime.model import Model
from tests import tinymodels
from tests.terminal import Alignez

# The same examples on every run; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user folder for what fixtures of modules and of the session do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNEZ_HOME", str(tmp_path_factory.mktemp("shared") / "home"))
        patch.delenv("ALIGNEZ_MODEL", raising=False)
        yield


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own user folder, which is not there yet; the caches lie in it as well."""
    monkeypatch.setenv("ALIGNEZ_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def alignez(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Alignez:
    """The command line, in this process."""
    return Alignez(monkeypatch, capsys)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tinymodels.tiny_model` without its folder; the same arguments give the same file."""
    folder = tmp_path_factory.mktemp("models")
    # With the options themselves: a function's name in a key is its address, free for another
    # function once it is gone.
    made: dict[str, tuple[Path, object]] = {}

    def make(architecture: str = "llama", **options: object) -> Path:
        key = repr((architecture, sorted(options.items())))
        if key not in made:
            place = folder / str(len(made))
            place.mkdir()
            path = tinymodels.tiny_model(place, architecture, **options)  # type: ignore[arg-type]
            made[key] = path, options
        return made[key][0]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[..., Path]) -> Path:
    """A llama of 6 layers and 64 dimensions in F16 with the tiny vocabulary, no chat template."""
    return tiny_model("llama", n_layer=6)


@pytest.fixture(scope="session")
def tiny_chat(tiny_model: Callable[..., Path]) -> Path:
    """The same with a ChatML template."""
    return tiny_model("llama", n_layer=6, template=tinymodels.CHATML)


@pytest.fixture(scope="session")
def llama_model(tiny_llama: Path) -> Iterator[Model]:
    """`tiny_llama`, loaded, with two threads."""
    with Model.load(tiny_llama, threads=2) as model:
        yield model


@pytest.fixture(scope="session")
def chat_model(tiny_chat: Path) -> Iterator[Model]:
    """`tiny_chat`, loaded, with two threads."""
    with Model.load(tiny_chat, threads=2) as model:
        yield model

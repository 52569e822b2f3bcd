from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.files.folders import builtin_folder, cache_dir, user_dir
from alignez_edge.profile.library import ProfileLibrary, check_name, parse_profile_option
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.terminal import ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def free_place(library: ProfileLibrary, model: Model, name: str) -> Path:
    return library.free_place(name, model.fingerprint, model.facts.name)


def names(library: ProfileLibrary) -> list[str]:
    return [entry.name for entry in library.list() if entry.origin == "user"]


def test_where_things_live(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_dir() == home and cache_dir() == home / "cache"
    monkeypatch.delenv("ALIGNEZ_HOME")
    assert user_dir().is_absolute() and cache_dir() != user_dir()


def test_save_list_find(llama_model: Model, home: Path) -> None:
    library = ProfileLibrary()
    assert names(library) == [] and not home.exists()
    path = library.save("my-axis_7.b", random_profile(llama_model))
    assert path == home / "profiles" / "my-axis_7.b.gguf"
    (home / "profiles" / ".x.gguf.abc.tmp").touch()
    (home / "profiles" / "folder.gguf").mkdir()
    assert names(library) == ["my-axis_7.b"]
    assert library.find("my-axis_7.b") == path
    assert Profile.load(library.find(str(path))).name == "polite"


def test_a_name_comes_before_a_file_beside_us(llama_model: Model, tmp_path: Path) -> None:
    library = ProfileLibrary(tmp_path / "lib")
    saved = library.save("mine", random_profile(llama_model))
    (tmp_path / "mine").touch()
    assert library.find("mine") == saved
    assert library.find("./mine") == Path("mine")


def test_near_matches(llama_model: Model) -> None:
    library = ProfileLibrary()
    library.save("cheerfully", random_profile(llama_model))
    for wanted in ("cheerfuly", "some/where/cheerfuly.gguf"):
        with pytest.raises(ProfileFileError, match="no profile called") as caught:
            library.find(wanted)
        assert caught.value.hint is not None and "cheerfully" in caught.value.hint
    for odd in ("", "a\0b", "\x1b[2J", "x" * 5000):
        with pytest.raises(ProfileFileError) as caught:
            library.find(odd)
        assert caught.value.message.isprintable()


def test_what_may_not_be_looked_at_is_said(
    llama_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = ProfileLibrary()
    path = library.save("mine", random_profile(llama_model))
    looked = Path.stat

    def refused(self: Path, **more: bool) -> os.stat_result:
        if self == path:  # as in a folder without search permission, which root may enter
            raise PermissionError(13, "Permission denied", str(self))
        return looked(self, **more)

    monkeypatch.setattr(Path, "stat", refused)
    asked = (library.find, library.check_removable, partial(free_place, library, llama_model))
    for ask in asked:
        with pytest.raises(BadInputError, match=r"cannot look at .*: Permission denied"):
            ask("mine")
    assert names(library) == ["mine"]  # which says when it is read what is wrong with it


def test_why_profiles_are_not_listed(home: Path) -> None:
    library = ProfileLibrary()
    assert library.trouble() is None
    home.mkdir()
    library.folder.mkdir()
    assert library.trouble() is None
    library.folder.rmdir()
    library.folder.touch()
    assert library.trouble() == f"cannot read {library.folder}: Not a directory"
    assert names(library) == []


def test_a_place_that_is_free(llama_model: Model) -> None:
    library = ProfileLibrary()
    assert free_place(library, llama_model, "mine") == library.folder / "mine.gguf"
    library.save("mine", random_profile(llama_model))
    with pytest.raises(BadInputError, match="there is a profile called mine for this model"):
        free_place(library, llama_model, "mine")


def test_names_are_escaped_once() -> None:
    for refused in (check_name, ProfileLibrary().find):
        with pytest.raises(BadInputError) as caught:
            refused("a\nb")
        assert "'a\\nb'" in caught.value.message


def test_remove(llama_model: Model) -> None:
    library = ProfileLibrary()
    path = library.save("mine", random_profile(llama_model))
    library.save("cheerful", random_profile(llama_model))
    with pytest.raises(ProfileFileError, match="you have no profile called 'min'") as caught:
        library.remove("min")
    assert caught.value.hint == "did you mean mine?"
    library.remove("mine")
    assert not path.exists() and names(library) == ["cheerful"]
    library.remove("cheerful")
    with pytest.raises(BadInputError, match="cheerful is built in and cannot be removed"):
        library.remove("cheerful")
    assert library.find("cheerful").is_file()
    for outside in ("../mine", "a/b", "/etc/passwd", ".."):
        with pytest.raises(BadInputError, match="cannot be the name"):
            library.remove(outside)


# one name, several models


@pytest.fixture
def of_others(llama_model: Model) -> Callable[..., Profile]:
    """Profiles of other models: what tells them apart, and what their model is called."""
    made = random_profile(llama_model)

    def profile(model: str = "Other 7B", **facts: Any) -> Profile:
        return replace(made, fingerprint=replace(made.fingerprint, **facts), model=model)

    return profile


def test_models_have_profiles_of_one_name(
    llama_model: Model, of_others: Callable[..., Profile]
) -> None:
    library = ProfileLibrary()
    ours = random_profile(llama_model)
    theirs = of_others(architecture="other")
    namesake = of_others(architecture="a third")
    places = [library.save("mine", profile) for profile in (ours, theirs, namesake)]
    assert [path.name for path in places] == [
        "mine.gguf",
        "mine@Other-7B.gguf",
        "mine@Other-7B-2.gguf",
    ]
    again = [library.save("mine", replace(p, seed=7)) for p in (ours, theirs, namesake)]
    assert again == places  # a build replaces its own model's profile and no other
    for profile, path in zip((ours, theirs, namesake), places, strict=True):
        assert library.find("mine", profile.fingerprint) == path
        assert Profile.load(path).fingerprint.architecture == profile.fingerprint.architecture
    entries = [entry.full_name for entry in library.list() if entry.origin == "user"]
    assert entries == ["mine@Other-7B", "mine@Other-7B-2", "mine@Random-model"]
    for full, path in zip(("random", "Other-7B", "other-7b-2"), places, strict=True):
        assert library.find(f"mine@{full}") == path
    for several in ("mine", "mine@other"):
        for ask in (library.find, library.remove):
            with pytest.raises(ProfileFileError, match="mine@Other-7B, mine@Other-7B-2") as caught:
                ask(several)
            assert caught.value.hint == "name one, like mine@Other-7B, or the model: -m MODEL"
    with pytest.raises(ProfileFileError, match="no profile called 'mine@stranger'"):
        library.find("mine@stranger")
    library.remove("mine@other-7b")
    assert names(library) == ["mine", "mine"] and not places[1].exists()


def test_a_profile_for_the_model_comes_before_one_for_a_sibling(
    of_others: Callable[..., Profile],
) -> None:
    library = ProfileLibrary()
    one, sibling, other = of_others(), of_others(template="another"), of_others(n_embd=3)
    path = library.save("mine", one)
    assert library.find("mine", sibling.fingerprint) == path
    assert library.find("mine", other.fingerprint) == path  # who loads it says what does not fit
    assert library.save("mine", sibling) != path
    for profile in (one, sibling):
        assert Profile.load(library.find("mine", profile.fingerprint)).fingerprint.template == (
            profile.fingerprint.template
        )
    with pytest.raises(ProfileFileError, match="'mine' is for this model, only mine@Other-7B, "):
        library.find("mine", other.fingerprint)


def test_a_built_in_profile_is_hidden_by_one_for_the_same_model_only(
    of_others: Callable[..., Profile],
) -> None:
    library = ProfileLibrary()
    shipped = Profile.load(library.find("polite"))
    path = library.save("polite", of_others())
    assert library.find("polite", shipped.fingerprint) == builtin_folder() / "polite.gguf"
    assert library.find("polite", of_others().fingerprint) == path
    with pytest.raises(ProfileFileError, match="polite@alignez-demo, polite@Other-7B"):
        library.find("polite")
    with pytest.raises(ProfileFileError, match="no profile called 'polite' for this model, only"):
        library.remove("polite", shipped.fingerprint)
    own = library.save("polite", replace(shipped, seed=7))
    assert library.find("polite@demo") == library.find("polite", shipped.fingerprint) == own
    library.remove("polite", shipped.fingerprint)
    library.remove("polite")
    assert library.find("polite") == builtin_folder() / "polite.gguf"


def test_a_damaged_file_is_neither_used_nor_replaced(of_others: Callable[..., Profile]) -> None:
    library = ProfileLibrary()
    path = library.save("mine", of_others())
    path.write_bytes(b"GGUF, once")
    assert library.find("mine") == path  # who reads it says what is wrong with it
    new = library.save("mine", of_others())
    assert new != path and path.read_bytes() == b"GGUF, once"
    assert library.find("mine", of_others().fingerprint) == new
    library.remove("mine@damaged")
    assert library.find("mine") == new


WRITER = """
import sys
from dataclasses import replace
from alignez_edge.profile.library import ProfileLibrary
from alignez_edge.profile import Profile

source, who, count = sys.argv[1:]
profile, library = Profile.load(source), ProfileLibrary()
for n in range(int(count)):
    library.save("shared", replace(profile, author=who, seed=n))
    library.save(f"{who}-{n}", profile)
"""


def test_programs_that_write_at_once_lose_nothing(
    llama_model: Model, home: Path, tmp_path: Path
) -> None:
    source, count = tmp_path / "source.gguf", 12
    random_profile(llama_model).save(source)
    library = ProfileLibrary()
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, source, who, str(count)], cwd=ROOT)
        for who in ("one", "two", "three")
    ]
    seen = set()
    while any(program.poll() is None for program in running):
        if (home / "profiles" / "shared.gguf").exists():
            shared = Profile.load(library.find("shared"))  # whole at any moment
            seen.add((shared.author, shared.seed))
    assert [program.wait() for program in running] == [0, 0, 0]
    assert seen <= {(who, n) for who in ("one", "two", "three") for n in range(count)}
    assert Profile.load(library.find("shared")).seed == count - 1
    assert len(names(library)) == 3 * count + 1
    assert not list((home / "profiles").glob(".*"))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "C:x", "a.", ".a", "x" * 65]
)
def test_names_cannot_leave_the_folder(llama_model: Model, name: str) -> None:
    with pytest.raises(BadInputError, match="cannot be the name"):
        ProfileLibrary().save(name, random_profile(llama_model))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("polite", ("polite", 1.0)),
        ("polite:0.8", ("polite", 0.8)),
        ("polite:-1", ("polite", -1.0)),
        ("polite:+.5e1", ("polite", 5.0)),
        ("./a:b.gguf:2", ("./a:b.gguf", 2.0)),
        ("./a:b.gguf", ("./a:b.gguf", 1.0)),
        ("C:\\x.gguf", ("C:\\x.gguf", 1.0)),
        ("C:\\x.gguf:0.5", ("C:\\x.gguf", 0.5)),
        ("C:/x", ("C:/x", 1.0)),
        ("there:2", ("there:2", 1.0)),
        ("there:2:3", ("there:2", 3.0)),
    ],
)
def test_profile_options(tmp_path: Path, text: str, expected: tuple[str, float]) -> None:
    (tmp_path / "there:2").touch()
    assert parse_profile_option(text) == expected


@pytest.mark.parametrize(
    "text",
    ["polite:", "polite:nan", "polite:inf", "polite:1e999", "polite:much", "polite:1_0", ":1", "",
     " ", "polite:٣", "a:\x1b[2J",
     "x" * 5000 + ":x"],
)  # fmt: skip
def test_bad_profile_options(text: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_profile_option(text)
    assert caught.value.message.isprintable()

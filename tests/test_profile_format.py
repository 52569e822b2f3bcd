"""`docs/profile-file.md` says what the program writes: every key and tensor, and no other."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from alignez_edge.errors import ProfileFileError
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.profile.file import VERSION
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from tests.mutations import parts_of
from tests.seeds import all_profiles
from tests.terminal import ROOT

PAGE = (ROOT / "docs" / "profile-file.md").read_text("utf-8")
TYPES = {4: "uint32", 7: "bool", 8: "string", 10: "uint64", 12: "float64"}
ELEMENTS = {4: "uint32 array", 6: "float32 array", 12: "float64 array"}


def rows(section: str) -> Iterator[list[str]]:
    """The cells of the tables in a section, without their heads."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def patterns(section: str) -> dict[re.Pattern[str], list[str]]:
    """What a documented name matches -> the other cells of its row."""
    found = {}
    for name, *cells in rows(section):
        pattern = re.escape(name.strip("`")).replace("<l>", r"\d+")
        found[re.compile(re.sub(r"<\w+>", r".+", pattern))] = cells
    return found


@pytest.fixture(scope="module")
def written(
    llama_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Profile, Path]]:
    """Profiles that together use all of the file, as files."""
    folder = tmp_path_factory.mktemp("written")
    profiles = all_profiles(llama_model)
    carrying = replace(llama_model.fingerprint, adapter=f"{'0' * 64}:0.5")
    profiles.append(replace(profiles[0], fingerprint=carrying))
    both = next(profile for profile in profiles if profile.exact is not None)
    profiles.append(replace(both, unit_negative=0.5, exact_unit_negative=0.25))
    pairs = []
    for i, profile in enumerate(profiles):
        profile.save(folder / f"{i}.gguf")
        pairs.append((profile, folder / f"{i}.gguf"))
    return pairs


def test_the_page_is_of_this_version() -> None:
    version = f"{VERSION[0]}.{VERSION[1]}"
    assert f"version {version}. A test" in PAGE.replace("\n", " ")
    history = [row for row in PAGE.splitlines() if re.match(r"\| \d+\.\d+ \|", row)]
    assert history[-1].startswith(f"| {version} |")
    assert f"the version of this format, `{version}`" in PAGE


def test_every_key_is_listed_with_its_type_and_every_listed_one_is_written(
    written: list[tuple[Profile, Path]],
) -> None:
    listed = patterns("Keys")
    used = set()
    for _, path in written:
        for raw, value in parts_of(path.read_bytes()).pairs:
            key = raw.decode()
            (pattern,) = (p for p in listed if p.fullmatch(key))
            kind, element = struct.unpack_from("<II", value + bytes(4))
            name = ELEMENTS[element] if kind == 9 else TYPES[kind]
            assert name in listed[pattern][0].replace("float64, or ", "float64|").split("|"), key
            used.add(pattern)
    assert used == set(listed), {p.pattern for p in set(listed) - used}


def test_every_tensor_is_listed_with_its_type_and_shape_and_every_listed_one_is_written(
    written: list[tuple[Profile, Path]], llama_model: Model
) -> None:
    listed = patterns("Tensors")
    used = set()
    for _, path in written:
        for name, info in read_gguf(path).tensors.items():
            (pattern,) = (p for p in listed if p.fullmatch(name))
            kind, shape = listed[pattern][0], listed[pattern][1]
            assert info.type == kind, name
            words = re.findall(r"\w+", shape)
            assert len(words) == len(info.shape), name
            for word, size in zip(reversed(words), info.shape, strict=True):
                assert word != "n_embd" or size == llama_model.n_embd, name
                assert not word.isdigit() or size == int(word), name
            used.add(pattern)
    assert used == set(listed), {p.pattern for p in set(listed) - used}


def test_what_is_always_there_is_needed(
    written: list[tuple[Profile, Path]], tmp_path: Path
) -> None:
    """A file without a key that is marked so is refused; without any other it is read."""
    for _, path in written:
        parts = parts_of(path.read_bytes())
        guide = any(tensor.name.startswith(b"value.") for tensor in parts.tensors)
        for i, (raw, _) in enumerate(parts.pairs):
            key, file = raw.decode(), tmp_path / "less.gguf"
            pairs = parts.pairs[:i] + parts.pairs[i + 1 :]
            file.write_bytes(replace(parts, pairs=pairs).encoded())
            (cells,) = (c for p, c in patterns("Keys").items() if p.fullmatch(key))
            if cells[1]:
                with pytest.raises(ProfileFileError):
                    Profile.load(file)
            elif not key.startswith(("profile.neighbors", "profile.bank", "profile.value")):
                Profile.load(file)
        assert guide == (b"profile.layers" not in dict(parts.pairs))


def test_unknown_keys_and_tensors_are_ignored_and_a_newer_major_is_not(
    written: list[tuple[Profile, Path]], tmp_path: Path
) -> None:
    for profile, path in written:
        parts = parts_of(path.read_bytes())
        key = (b"profile.neighbours_of_neighbours", struct.pack("<IQ", 8, 1) + b"x")
        tensor = replace(parts.tensors[0], name=b"later.2", offset=len(parts.data))
        later = replace(
            parts,
            pairs=(*parts.pairs, key),
            tensors=(*parts.tensors, tensor),
            data=parts.data + bytes(4 * tensor.dims[0] + 32),
        )
        for version, read in ((b"1.9", True), (b"1.0", True), (b"2.0", False)):
            pairs = dict(later.pairs)
            pairs[b"profile.version"] = struct.pack("<IQ", 8, 3) + version
            file = tmp_path / "later.gguf"
            file.write_bytes(replace(later, pairs=tuple(pairs.items())).encoded())
            if read:
                assert Profile.load(file).order == profile.order
            else:
                with pytest.raises(ProfileFileError, match="this program reads up to"):
                    Profile.load(file)


def test_reading_and_saving_again_gives_the_same_bytes(
    written: list[tuple[Profile, Path]], tmp_path: Path
) -> None:
    for _, path in written:
        Profile.load(path).save(tmp_path / "again.gguf")
        assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()

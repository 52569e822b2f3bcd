from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from alignez_edge.errors import AlignezError, BadInputError, ProfileFileError
from alignez_edge.files import reading as files
from alignez_edge.files.writing import write_atomic
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.modelfiles.fingerprint import Fit, compare
from alignez_edge.profile.file import VERSION
from alignez_edge.profile.profile import Profile
from alignez_edge.repeatable import timestamp
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile

FIELDS = (
    "axis", "layers", "unit", "method", "calibration", "seed", "pairs", "dropped",
    "versions", "author", "licence", "created_at", "model", "report",
)  # fmt: skip


def test_save_and_load_to_the_bit(llama_model: Model, tmp_path: Path) -> None:
    profile = random_profile(llama_model)
    path = tmp_path / "polite.gguf"
    profile.save(path)
    again = Profile.load(path)
    for name in FIELDS:
        assert getattr(again, name) == getattr(profile, name), name
    assert compare(again.fingerprint, llama_model.fingerprint).fit is Fit.SAME
    assert again.vector.deciding.tobytes() == profile.vector.deciding.tobytes()
    assert again.vector.answer.tobytes() == profile.vector.answer.tobytes()
    assert again.axis.queries == ()
    assert [entry.name for entry in tmp_path.iterdir()] == ["polite.gguf"]


def test_equal_profiles_give_equal_bytes(llama_model: Model, tmp_path: Path) -> None:
    first, second, other = tmp_path / "a.gguf", tmp_path / "b", tmp_path / "c"
    random_profile(llama_model).save(first)
    Profile.load(first).save(second)
    random_profile(llama_model, 1).save(other)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    assert str(tmp_path).encode() not in first.read_bytes()


def test_the_least_profile(llama_model: Model, tmp_path: Path) -> None:
    vector = ControlVector.zeros(llama_model.n_layer, llama_model.n_embd)
    made = random_profile(llama_model)
    bare = Profile(made.axis, vector, (1,), llama_model.fingerprint)
    bare.save(tmp_path / "bare.gguf")
    again = Profile.load(tmp_path / "bare.gguf")
    assert again.vector.is_zero() and again.layers == (1,)
    assert again.created_at == bare.created_at and again.calibration == {}


def test_the_time_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert timestamp() == "1970-01-01T00:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert timestamp() > "2026"


EDIT = np.zeros((6, 64), np.float32)
EDIT[5] = 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"vector": ControlVector(EDIT, EDIT)}, "the vector edits layers"),
        ({"layers": (0, 2, 3)}, "layers must lie in"),
        ({"unit": 0.0}, "positive number"),
        ({"unit": math.nan}, "positive number"),
        ({"seed": -1}, "seed is -1"),
        ({"pairs": 1 << 63}, "outside 0 to"),
        ({"author": "a\x1b[2J"}, "control characters"),
        ({"versions": {"a\nb": "1"}}, "control characters"),
        ({"calibration": {"strengths": (0.0, 1.0), "margin": (1.0,)}}, "one number per strength"),
        ({"calibration": {"margin": (math.inf,)}}, "finite"),
        ({"calibration": {"margin": ()}}, "1 to 1000"),
        ({"calibration": {"../x": 1.0}}, "odd name"),
        ({"report": {"x": math.nan}}, "JSON"),
        ({"report": {"x": "y" * (1 << 20)}}, "longer than"),
    ],
)
def test_contradictions_are_refused(
    llama_model: Model, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        random_profile(llama_model, **facts)


Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], None]


def rewrite(source: Path, target: Path, edit: Edit, architecture: str = "steering-profile") -> Path:
    """Copy a profile through `edit(keys, tensors)`, which may change both."""
    reader = gguf.GGUFReader(source)
    keys: dict[str, Any] = {
        name: (field.contents(), field.types)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    edit(keys, tensors)
    writer = gguf.GGUFWriter(target, architecture)
    for name, (value, types) in keys.items():
        writer.add_key_value(name, value, types[0], types[1] if len(types) > 1 else None)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def key(name: str, value: Any, *types: gguf.GGUFValueType) -> Edit:
    def edit(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        keys[f"profile.{name}"] = (value, types or keys[f"profile.{name}"][1])

    return edit


def without(name: str) -> Edit:
    def edit(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        keys.pop(name, None)
        tensors.pop(name, None)

    return edit


def tensor(name: str, data: np.ndarray) -> Edit:
    return lambda keys, tensors: tensors.update({name: data})


KIND = gguf.GGUFValueType
ROW = np.zeros(64, np.float32)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (key("version", f"{VERSION[0] + 1}.0"), "made for version 2.0"),
        (key("version", "0.9"), "no such version"),
        (key("version", "one"), "not like '1.0'"),
        (key("version", 1, KIND.UINT32), "profile.version is not a text"),
        (without("profile.version"), "profile.version is missing"),
        (without("profile.axis.positive"), "profile.axis.positive is missing"),
        (key("axis.name", "../../etc"), "cannot be named"),
        (key("axis.positive", "a\x1b[2Jb"), "control characters"),
        (key("author", "a\u202eb"), "control characters"),
        (key("author", "x" * 5000), "longer than"),
        (key("author", 7, KIND.UINT32), "not a text"),
        (key("n_layer", 1), "impossible sizes"),
        (key("n_embd", 1 << 40), "impossible sizes"),
        (key("n_embd", 32), r"F32 of shape \(64,\), not F32 of \(32,\)"),
        (key("n_layer", 1.5, KIND.FLOAT32), "not a whole number"),
        (key("layers", [2, 99]), "layers must lie in"),
        (key("layers", [2, 2, 3]), "named twice"),
        (key("layers", [2, 3, 4]), "the tensor deciding.4 is missing"),
        (key("layers", [2]), "is of no layer"),
        (key("layers", "2"), "profile.layers"),
        (key("layers", [2.0, 3.0], KIND.ARRAY, KIND.FLOAT32), "not a list of whole numbers"),
        (key("unit", math.nan), "positive number"),
        (key("unit", -1.0), "positive number"),
        (key("unit", 1, KIND.UINT32), "floating-point"),
        (key("seed", -1, KIND.INT64), "seed is -1"),
        (key("calibration.margin", [1.0]), "one number per strength"),
        (key("calibration.margin", [math.nan] * 3), "finite"),
        (key("calibration.margin", [0.0] * 5000), "calibration.margin"),
        (key("calibration.budget", "much", KIND.STRING), "floating-point"),
        (key("report", "{"), "not JSON"),
        (key("report", "[]"), "not a table"),
        (key("report", '{"x": NaN}'), "not JSON"),
        (key("report", "[" * 100_000), "profile.report|nested|recursion"),
        (key("dropped", '{"a": "b"}'), "not a table"),
        (without("answer.3"), "the tensor answer.3 is missing"),
        (tensor("deciding.2", ROW + np.nan), "not finite"),
        (tensor("deciding.2", ROW.astype(np.float16)), "F16"),
        (tensor("deciding.2", ROW.reshape(8, 8)), "of shape"),
        (tensor("deciding.0", ROW), "is of no layer"),
    ],
)
def test_malformed_files_are_one_line(
    llama_model: Model, tmp_path: Path, edit: Edit, message: str
) -> None:
    random_profile(llama_model).save(tmp_path / "good.gguf")

    def guarded(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        edit(keys, tensors)
        value, _ = keys.get("profile.layers", ("", (KIND.STRING,)))
        if isinstance(value, str):
            keys["profile.layers"] = (value, (KIND.STRING,))

    path = rewrite(tmp_path / "good.gguf", tmp_path / "bad.gguf", guarded)
    with pytest.raises(ProfileFileError, match=message) as caught:
        Profile.load(path)
    assert caught.value.message.isprintable() and len(caught.value.message) < 1000


def test_a_newer_minor_version_is_read_and_its_news_ignored(
    llama_model: Model, tmp_path: Path
) -> None:
    random_profile(llama_model).save(tmp_path / "good.gguf")

    def newer(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        keys["profile.version"] = (f"{VERSION[0]}.{VERSION[1] + 1}", (KIND.STRING,))
        keys["profile.news"] = ("x", (KIND.STRING,))
        tensors["bank.2"] = ROW

    assert Profile.load(rewrite(tmp_path / "good.gguf", tmp_path / "new.gguf", newer)).pairs == 31


def test_other_files_are_no_profiles(tiny_llama: Path, llama_model: Model, tmp_path: Path) -> None:
    with pytest.raises(ProfileFileError, match="not a steering profile but 'llama'"):
        Profile.load(tiny_llama)
    with pytest.raises(ProfileFileError, match="no such file"):
        Profile.load(tmp_path / "none.gguf")
    path = tmp_path / "text.gguf"
    path.write_text("hello")
    with pytest.raises(ProfileFileError, match="not a GGUF"):
        Profile.load(path)


def test_every_cut_of_a_file_is_refused(llama_model: Model, tmp_path: Path) -> None:
    random_profile(llama_model).save(tmp_path / "good.gguf")
    data = (tmp_path / "good.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, len(data) - 1, 97)]:
        path.write_bytes(data[:length])
        with pytest.raises(ProfileFileError):
            Profile.load(path)


def test_no_flipped_byte_gets_through_as_a_crash(llama_model: Model, tmp_path: Path) -> None:
    random_profile(llama_model).save(tmp_path / "good.gguf")
    data = (tmp_path / "good.gguf").read_bytes()
    path, rng = tmp_path / "flipped.gguf", np.random.default_rng(0)
    for _ in range(300):
        spoiled = bytearray(data)
        spoiled[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        try:
            Profile.load(path)
        except ProfileFileError as failure:
            assert "\n" not in failure.message


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(
    llama_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "polite.gguf"
    random_profile(llama_model).save(path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(AlignezError, match="No space left on device"):
        random_profile(llama_model, 1).save(path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == [
        "polite.gguf"
    ]


def test_where_a_file_cannot_go(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such folder"):
        write_atomic(tmp_path / "none" / "x", b"")
    with pytest.raises(BadInputError, match="not a plain file"):
        write_atomic(tmp_path, b"")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    try:
        link.symlink_to(tmp_path / "there" / "file")
    except OSError:
        pytest.skip("no links here")
    write_atomic(link, b"new")
    assert link.is_symlink() and (tmp_path / "there" / "file").read_bytes() == b"new"


def test_the_report_is_json(llama_model: Model) -> None:
    profile = random_profile(llama_model, report={"a": (1, 2)})
    assert json.loads(json.dumps(profile.report)) == profile.report == {"a": [1, 2]}

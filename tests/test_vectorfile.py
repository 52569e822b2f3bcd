"""Control-vector files: what is written is read, both makers' layouts, and what is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from alignez_edge.errors import AlignezError, BadInputError, ProfileFileError
from alignez_edge.exchange.importing import imported_profile, notices_of
from alignez_edge.exchange.vectorfile import ARCHITECTURE, read_control_vector, write_control_vector
from alignez_edge.runtime.capture import capture
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from benchmarks.llamacpp import built
from benchmarks.planted import (
    OTHERS,
    WORD,
    Planted,
    planted_model,
    with_generator,
    with_repeng,
)

N_LAYER, N_EMBD = 6, 64
DRAWN = np.random.default_rng(0).standard_normal((N_LAYER, N_EMBD)).astype(np.float32)


def written(
    path: Path,
    directions: Mapping[str, np.ndarray],
    count: Callable[[gguf.GGUFWriter], None] | None,
    architecture: str = ARCHITECTURE,
    hint: str = "llama",
) -> Path:
    """A file as another program would write it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", hint)
    if count is not None:
        count(writer)
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def signed(number: int) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_int32("controlvector.layer_count", number)


def unsigned(number: int) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_uint32("controlvector.layer_count", number)


def from_llama_cpp(path: Path) -> Path:
    """What `cvector-generator` writes where row l of DRAWN was read at `l_out-l`."""
    directions = {f"direction.{layer + 1}": DRAWN[layer] for layer in range(N_LAYER - 1)}
    return written(path, directions, signed(N_LAYER - 1))


def from_repeng(path: Path) -> Path:
    """What repeng writes of the same: the last layer first."""
    directions = {f"direction.{layer}": DRAWN[layer] for layer in range(N_LAYER - 1, 0, -1)}
    return written(path, directions, unsigned(N_LAYER - 1))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = DRAWN.copy()
    rows[[0, 3]] = 0
    write_control_vector(tmp_path / "v.gguf", rows, "llama")
    file = read_control_vector(tmp_path / "v.gguf")
    assert list(file.directions) == [1, 2, 4, 5] and file.hint == "llama"
    assert np.array_equal(file.rows(N_LAYER, N_EMBD), rows)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{i}" for i in (1, 2, 4, 5)]


def test_nothing_is_not_written(tmp_path: Path) -> None:
    rows = np.zeros_like(DRAWN)
    rows[0] = 1
    with pytest.raises(BadInputError, match="changes nothing"):
        write_control_vector(tmp_path / "v.gguf", rows, "llama")
    assert list(tmp_path.iterdir()) == []


def test_both_makers_are_told_apart(tmp_path: Path) -> None:
    late = read_control_vector(from_llama_cpp(tmp_path / "a.gguf"))
    aligned = read_control_vector(from_repeng(tmp_path / "b.gguf"))
    assert (late.maker, aligned.maker) == ("llama.cpp", "repeng")
    # Row l of DRAWN was found at layer l: there it belongs, whoever has found it.
    rows = late.rows(N_LAYER, N_EMBD)
    assert np.array_equal(rows[1:-1], DRAWN[1:-1])
    assert not rows[[0, -1]].any()
    rows = aligned.rows(N_LAYER, N_EMBD)
    assert np.array_equal(rows[1:], DRAWN[1:])
    assert not rows[0].any()


def test_what_is_said_overrides_the_marks(tmp_path: Path) -> None:
    file = read_control_vector(from_llama_cpp(tmp_path / "a.gguf"))
    rows = file.rows(N_LAYER, N_EMBD, "repeng")
    assert np.array_equal(rows[1:], DRAWN[:-1])


@pytest.mark.parametrize(
    "count", [None, signed(2), signed(1), unsigned(7)], ids=["none", "gap", "fewer", "more"]
)
def test_marks_that_disagree_are_asked_about(
    tmp_path: Path, count: Callable[[gguf.GGUFWriter], None] | None
) -> None:
    path = written(tmp_path / "v.gguf", {"direction.2": DRAWN[2], "direction.3": DRAWN[3]}, count)
    file = read_control_vector(path)
    assert file.maker is None
    with pytest.raises(ProfileFileError, match="unknown maker") as failure:
        file.rows(N_LAYER, N_EMBD)
    assert "--from" in (failure.value.hint or "")
    assert np.array_equal(file.rows(N_LAYER, N_EMBD, "repeng")[2], DRAWN[2])
    assert np.array_equal(file.rows(N_LAYER, N_EMBD, "llama.cpp")[1], DRAWN[2])


def bad(index: int, value: float) -> np.ndarray:
    row = DRAWN[1].copy()
    row[index] = value
    return row


@pytest.mark.parametrize(
    ("directions", "error"),
    [
        ({}, "without any direction"),
        ({"direction.1": bad(3, np.nan)}, "direction.1 holds numbers that are not finite"),
        ({"direction.1": bad(0, np.inf)}, "direction.1 holds numbers that are not finite"),
        ({"direction.1": DRAWN[1].astype(np.float16)}, "direction.1 is F16"),
        ({"direction.1": DRAWN[:2]}, "not one row of F32"),
        ({"direction.1": DRAWN[1], "direction.2": DRAWN[2, :32]}, "different lengths"),
        (
            {"direction.1": DRAWN[1], "direction.01": DRAWN[1]},
            "'direction.01' is not the direction",
        ),
        ({"direction.-1": DRAWN[1]}, "'direction.-1' is not the direction"),
        ({"direction.99999999999": DRAWN[1]}, "is not the direction"),
        ({"token_embd.weight": DRAWN[1]}, "'token_embd.weight' is not the direction"),
        ({"direction.\x1b[31m": DRAWN[1]}, r"direction.\\x1b[31m"),
    ],
)
def test_odd_files_are_refused(
    tmp_path: Path, directions: dict[str, np.ndarray], error: str
) -> None:
    path = written(tmp_path / "v.gguf", directions, unsigned(len(directions)))
    with pytest.raises(ProfileFileError) as failure:
        read_control_vector(path)
    assert error in failure.value.message
    assert failure.value.message.startswith(str(path)) and "\n" not in failure.value.message


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "v.gguf", {"direction.1": DRAWN[1]}, None, "llama")
    with pytest.raises(ProfileFileError, match="not a control vector"):
        read_control_vector(path)


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    file = read_control_vector(from_repeng(tmp_path / "v.gguf"))
    for shape, error in (
        ((N_LAYER, 32), "hidden size 64, the model has 32"),
        ((4, N_EMBD), "a direction 5, the model's last layer is 3"),
    ):
        with pytest.raises(ProfileFileError, match=error):
            file.rows(*shape)
    only = written(tmp_path / "w.gguf", {"direction.1": DRAWN[1]}, signed(1))
    with pytest.raises(ProfileFileError, match="changes nothing in a layer"):
        read_control_vector(only).rows(N_LAYER, N_EMBD)


def test_an_imported_profile_adds_it_at_every_token(tmp_path: Path, llama_model: Model) -> None:
    file = read_control_vector(from_llama_cpp(tmp_path / "bright.gguf"))
    profile = imported_profile(file, llama_model, "bright", unit=2.5)
    assert (profile.method, profile.layers, profile.unit) == ("imported", (1, 2, 3, 4), 2.5)
    assert profile.report["imported"] == {"file": "bright.gguf", "made_by": "llama.cpp"}
    injection = profile.injection(llama_model)
    assert isinstance(injection, Injection)
    assert np.array_equal(injection.deciding, injection.answer)
    assert np.allclose(injection.answer[1:5], 2.5 * DRAWN[1:5], rtol=1e-6)
    notices = notices_of(file, llama_model, "llama.cpp")
    assert any("one lower" in line for line in notices)
    assert any("layer 0 is left out" in line for line in notices)
    for name, unit in (("not a name", 1.0), ("bright", -1.0)):
        with pytest.raises(AlignezError):
            imported_profile(file, llama_model, name, unit=unit)


def test_a_hint_of_another_model_is_said(tmp_path: Path, llama_model: Model) -> None:
    path = written(
        tmp_path / "v.gguf", {"direction.1": DRAWN[1]}, unsigned(1), hint="mis\x1b[31mtral"
    )
    (notice,) = notices_of(read_control_vector(path), llama_model, "repeng")
    assert "was made for mis\\x1b[31mtral, the model is llama" in notice


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted_model(tmp_path_factory.mktemp("planted"))


def test_the_planted_directions_are_there(planted: Planted) -> None:
    """What the tests below rely on, seen without other programs."""
    with Model.load(planted.path, threads=1) as model:
        items = [(model.tokenize(text, begin=True), (5,)) for text in (WORD, OTHERS[0])]
        word, other = capture(model, items, tensor="l_out")
    difference = word.deciding - other.deciding
    assert planted.layers_of(difference) == list(range(planted.directions.shape[0]))
    assert np.linalg.norm(other.deciding, axis=1).max() < 10


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_a_vector_of_the_generator_arrives_where_it_was_found(
    tmp_path: Path, planted: Planted, method: str
) -> None:
    program = built("llama-cvector-generator")
    if program is None:
        pytest.skip("llama.cpp's programs are not built: python -m benchmarks.exchange")

    def run(arguments: list[str]) -> None:
        subprocess.run([str(program), *arguments], check=True, capture_output=True, timeout=60)

    file = read_control_vector(with_generator(run, planted.path, tmp_path, method))
    assert file.maker == "llama.cpp"
    stored = np.stack(list(file.directions.values()))
    assert planted.layers_of(stored) == [0, 1, 2, 3, 4]
    assert planted.layers_of(file.rows(6, 64)) == [None, 1, 2, 3, 4, None]


def test_a_vector_of_repeng_arrives_where_it_was_found(tmp_path: Path, planted: Planted) -> None:
    pytest.importorskip("repeng")
    with Model.load(planted.path, threads=1) as model:
        path = with_repeng(planted.path, lambda text: model.tokenize(text, begin=True), tmp_path)
    file = read_control_vector(path)
    assert file.maker == "repeng"
    assert planted.layers_of(file.rows(6, 64)) == [None, 1, 2, 3, 4, 5]

"""`alignez profile export` and `import` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.exchange.vectorfile import read_control_vector
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.terminal import Alignez
from tests.test_cli import alignez, home  # noqa: F401  (fixtures)
from tests.test_export import exact_profile, keep_pairs
from tests.test_vectorfile import DRAWN, from_llama_cpp, from_repeng, unsigned, written


@pytest.fixture
def use(tiny_llama: Path) -> list[object]:
    return ["-m", tiny_llama, "--threads", 1]


@pytest.fixture
def polite(llama_model: Model, tmp_path: Path) -> Path:
    path = tmp_path / "polite.gguf"
    random_profile(llama_model).save(path)
    return path


@pytest.fixture
def exact(llama_model: Model, tmp_path: Path) -> Path:
    path = tmp_path / "exact.gguf"
    exact_profile(llama_model).save(path)
    return path


def test_export_a_control_vector(
    alignez: Alignez,  # noqa: F811
    polite: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "v.gguf"
    said = alignez("profile", "export", f"{polite}:0.5", "--to", "control-vector", "-o", target)
    assert said.code == 0
    assert said.out.splitlines() == [
        str(target),
        f"try: llama-completion -m MODEL --control-vector {target} -p ...",
    ]
    assert said.err.splitlines() == [
        "note: other programs apply it to every token, the prompt's too; alignez leaves the prompt"
        " alone but for its last token",
        "note: what the profile does at the last prompt token is left out (--part deciding)",
    ]
    profile = Profile.load(polite)
    rows = read_control_vector(target).rows(6, 64)
    assert np.allclose(rows, 0.5 * profile.unit * profile.vector.answer, rtol=1e-6)
    # An older file of that name goes, as with `build -o`.
    command = ["profile", "export", polite, "--to", "control-vector", "-o", target]
    said = alignez(*command, "--part", "deciding", "--json", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out) == {
        "profile": "polite",
        "to": "control-vector",
        "strength": 1.0,
        "part": "deciding",
        "files": [str(target)],
    }
    assert not np.allclose(read_control_vector(target).rows(6, 64), rows)


def test_export_a_lora(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    exact: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "lora"
    said = alignez("profile", "export", exact, "--to", "lora", "-o", folder, *use)
    assert said.code == 0
    assert said.out.splitlines() == [
        f"{folder}/adapter.gguf",
        f"{folder}/Modelfile",
        f"try: llama-completion -m MODEL --lora {folder}/adapter.gguf -p ...",
        f"or:  ollama create NAME -f {folder}/Modelfile",
    ]
    answer = alignez("run", "hello", *use, "--lora", f"{folder}/adapter.gguf", "--max-tokens", 2)
    assert answer.code == 0


def test_export_a_peft_folder(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    exact: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("safetensors")
    folder = tmp_path / "peft"
    said = alignez("profile", "export", exact, "--to", "peft", "-o", folder, *use, "--json")
    assert said.code == 0
    assert json.loads(said.out)["files"] == [
        f"{folder}/adapter_model.safetensors",
        f"{folder}/adapter_config.json",
    ]


def test_export_pairs(
    alignez: Alignez,  # noqa: F811
    home: Path,  # noqa: F811
    polite: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "out.jsonl"
    command = ["profile", "export", polite, "--to", "pairs", "-o", target]
    said = alignez(*command)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        "error: the pairs of polite are not on this machine: a profile does not hold them",
        "hint: name their file: --pairs FILE",
    ]
    keep_pairs(home / "builds" / "polite-1", Profile.load(polite))
    said = alignez(*command)
    assert (said.code, said.out) == (0, f"{target}\n")
    assert len(target.read_text("utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        (["--to", "lore"], "--to cannot be 'lore'", "did you mean lora?"),
        (["--to", "lora"], "the profile polite adds constants: no LoRA can be made of it",
         "export it as a control vector: --to control-vector"),
        (["--to", "peft"], "the profile polite adds constants: no LoRA can be made of it",
         "export it as a control vector: --to control-vector"),
        (["--to", "control-vector", "--part", "both"], "--part cannot be 'both'",
         "choose from answer, deciding"),
        (["--to", "control-vector", "--pairs", "p"], "--pairs is for --to pairs only",
         "leave it out"),
    ],
)  # fmt: skip
def test_wrong_use_of_export(
    alignez: Alignez,  # noqa: F811
    polite: Path,
    tmp_path: Path,
    options: list[str],
    error: str,
    hint: str,
) -> None:
    said = alignez("profile", "export", polite, "-o", tmp_path / "out", *options)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [f"error: {error}", f"hint: {hint}"]
    assert not (tmp_path / "out").exists()


def test_export_overwrites_nothing_that_it_reads(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    exact: Path,
    tmp_path: Path,
) -> None:
    adapter = tmp_path / "lora" / "adapter.gguf"
    adapter.parent.mkdir()
    exact.rename(adapter)
    link = tmp_path / "link.gguf"
    link.symlink_to(adapter)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "a", "chosen": "b", "rejected": "c"}\n')
    kept = adapter.read_bytes(), pairs.read_bytes()
    for options, target in (
        (["--to", "control-vector"], adapter),
        (["--to", "control-vector"], link),
        (["--to", "pairs"], adapter),
        (["--to", "pairs", "--pairs", pairs], pairs),
        (["--to", "lora", *use], adapter.parent),
        (["--to", "peft", *use], adapter),
    ):
        said = alignez("profile", "export", f"{adapter}:1", *options, "-o", target)
        assert (said.code, said.out) == (2, "")
        assert said.err.splitlines()[-2].endswith(": it is the file that is read")
        assert (adapter.read_bytes(), pairs.read_bytes()) == kept


def test_a_name_too_long_for_a_folder(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    exact: Path,
) -> None:
    said = alignez("profile", "export", exact, "--to", "lora", "-o", "x" * 300, *use)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: cannot write xxx")


def test_a_control_vector_given_as_something_else(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "v.gguf", {"direction.2": DRAWN[2]}, unsigned(1))
    hint = "hint: make a profile of it: alignez profile import FILE -m MODEL"
    for command, instead in (
        (["run", "hi", *use, "--lora", path], "an adapter"),
        (["model", "show", "-m", path], "a model"),
    ):
        said = alignez(*command)
        assert (said.code, said.out) == (2, "")
        assert said.err.splitlines() == [
            f"error: {path}: a control vector, not {instead}",
            hint,
        ]


def test_export_into_a_folder_that_is_not_there(
    alignez: Alignez,  # noqa: F811
    polite: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "no" / "v.gguf"
    said = alignez("profile", "export", polite, "--to", "control-vector", "-o", target)
    assert (said.code, said.err.splitlines()[-1]) == (
        2,
        f"error: cannot write {target}: no such folder",
    )


def test_import_a_profile(
    alignez: Alignez,  # noqa: F811
    home: Path,  # noqa: F811
    polite: Path,
    exact: Path,
) -> None:
    said = alignez("profile", "import", polite, "--name", "kind")
    target = home / "profiles" / "kind.gguf"
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        str(target),
        'try: alignez run -p kind "Tell me about bread."',
    ]
    assert target.read_bytes() == polite.read_bytes()
    # The same file again is no harm, another one is not taken under that name.
    assert alignez("profile", "import", polite, "--name", "kind").code == 0
    said = alignez("profile", "import", exact, "--name", "kind")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(
        "error: there is a profile called kind for this model already\nhint: "
    )
    assert target.read_bytes() == polite.read_bytes()
    said = alignez("profile", "import", polite, "--name", "../kind")
    assert (said.code, said.out) == (2, "")
    assert sorted(path.name for path in home.rglob("*.gguf")) == ["kind.gguf"]


def test_import_a_folder(
    alignez: Alignez,  # noqa: F811
    home: Path,  # noqa: F811
    polite: Path,
    exact: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "broken.gguf").write_bytes(polite.read_bytes()[:-40])
    from_repeng(tmp_path / "vector.gguf")
    (tmp_path / "notes.txt").write_text("not looked at")
    said = alignez("profile", "import", tmp_path, "--json")
    assert said.code == 2
    assert [json.loads(line)["profile"] for line in said.out.splitlines()] == [
        str(home / "profiles" / "exact.gguf"),
        str(home / "profiles" / "polite.gguf"),
    ]
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "broken.gguf" in errors[0] and "truncated" in errors[0]
    assert "vector.gguf is a control vector" in errors[1]
    (tmp_path / "empty").mkdir()
    said = alignez("profile", "import", tmp_path / "empty")
    assert (said.code, said.err) == (
        2,
        f"error: the folder {tmp_path / 'empty'} holds no .gguf files\n",
    )


def test_import_control_vectors(
    alignez: Alignez,  # noqa: F811
    home: Path,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    late, aligned = from_llama_cpp(tmp_path / "late.gguf"), from_repeng(tmp_path / "a b.gguf")
    said = alignez("profile", "import", late, *use, "--strength", 3)
    assert said.code == 0
    assert said.out.splitlines()[0] == str(home / "profiles" / "late.gguf")
    assert "note: llama.cpp's cvector-generator counts layers from 1" in said.err
    profile = Profile.load(home / "profiles" / "late.gguf")
    assert (profile.layers, profile.unit) == ((1, 2, 3, 4), 3.0)
    assert np.array_equal(profile.vector.answer[1:5], DRAWN[1:5])
    said = alignez("profile", "import", aligned, *use, "--json")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out) == {
        "profile": str(home / "profiles" / "a-b.gguf"),
        "axis": "a-b",
        "kind": "control-vector",
        "layers": [1, 2, 3, 4, 5],
    }
    answer = alignez("run", "hello", *use, "-p", "late:0.1", "--max-tokens", 2)
    assert answer.code == 0
    card = alignez("profile", "show", "late")
    assert "imported" in card.out


def test_an_exported_control_vector_comes_back(
    alignez: Alignez,  # noqa: F811
    home: Path,  # noqa: F811
    use: list[object],
    polite: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "v.gguf"
    alignez("profile", "export", polite, "--to", "control-vector", "-o", target)
    assert alignez("profile", "import", target, *use, "--name", "again").code == 0
    profile, again = Profile.load(polite), Profile.load(home / "profiles" / "again.gguf")
    assert np.allclose(again.vector.answer, profile.unit * profile.vector.answer, rtol=1e-6)
    assert again.layers == profile.layers


def test_a_vector_of_unknown_make_is_asked_about(
    alignez: Alignez,  # noqa: F811
    home: Path,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "v.gguf", {"direction.2": DRAWN[2]}, None)
    said = alignez("profile", "import", path, *use)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1].startswith("hint: name it: --from llama.cpp")
    for maker, layer in (("llama.cpp", 1), ("repeng", 2)):
        name = f"v{layer}"
        said = alignez("profile", "import", path, *use, "--from", maker, "--name", name)
        assert said.code == 0
        assert Profile.load(home / "profiles" / f"{name}.gguf").layers == (layer,)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--from", "vllm"], "error: --from cannot be 'vllm'"),
        (["--strength", "0"], "error: --strength is 0.0; it must be a number above 0"),
        (["--strength", "nan"], "error: --strength is nan; it must be a number above 0"),
        (["--name", "a.b c"], "error: 'a.b c' cannot be the name of a profile"),
        ([], "error: {} is a control vector, which does not name its model"),
    ],
)
def test_wrong_use_of_import(
    alignez: Alignez,  # noqa: F811
    home: Path,  # noqa: F811
    tmp_path: Path,
    options: list[str],
    error: str,
) -> None:
    path = written(tmp_path / "v.gguf", {"direction.2": DRAWN[2]}, unsigned(1))
    said = alignez("profile", "import", path, *options)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(error.format(path)) and "Traceback" not in said.err
    assert not home.exists()


def test_what_is_no_profile_is_refused_in_one_line(
    alignez: Alignez,  # noqa: F811
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    for path, error in (
        (tmp_path / "none.gguf", "no such file"),
        (tiny_llama, "not a steering profile but 'llama'"),
    ):
        said = alignez("profile", "import", path)
        assert (said.code, said.out) == (2, "")
        assert error in said.err.splitlines()[0]

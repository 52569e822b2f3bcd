"""Bad input through the real command line: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.terminal import COMMAND, ROOT

OLD = b"what was there before"
NEW_AXIS = ["build", "bright", "--positive", "bright", "--negative", "dark", "--threads", "1"]
RUN = ["run", "hello", "--threads", "1", "--max-tokens", "2"]


@dataclass(frozen=True)
class Files:
    """A folder with good and bad files, made once; `name` is looked up in it."""

    folder: Path
    model: Path

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def files(
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Files:
    folder = tmp_path_factory.mktemp("bad")
    good = tiny_model("llama", n_layer=4)
    made = Files(folder, good)
    data = good.read_bytes()
    n_all = len(data)
    for name, kept in {"magic": 4, "header": 20, "keys": 1000, "half": n_all // 2}.items():
        (folder / f"cut-{name}.gguf").write_bytes(data[:kept])
    (folder / "cut-last.gguf").write_bytes(data[:-1])
    for name, kept in {"half": n_all // 2, "most": n_all * 4 // 5, "all": 0}.items():
        # A download that took the whole size at once, and was interrupted.
        (folder / f"zeros-{name}.gguf").write_bytes(data[:kept] + bytes(n_all - kept))
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "text.gguf").write_text("hello, I am no model\n")
    _write_bert(folder / "bert.gguf")
    _write_profiles(tiny_model, good, folder)

    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.txt").write_bytes(b"\n \n")
    (folder / "latin.txt").write_bytes(b"one\nd\xe9j\xe0 vu\n")
    (folder / "broken.jsonl").write_text('{"query": "a"}\n{"query": \n')
    (folder / "long.txt").write_text("\n".join(["word " * 600, *"abc"]))
    (folder / "key.toml").write_text('name="x"\npositive="a"\nnegative="b"\nlayer=3\n')
    (folder / "broken.toml").write_text('name = "x\npositive\n')
    (folder / "half.toml").write_text('name = "x"\nnegative = "a"\n')
    good_pairs = [_pair(topic) for topic in "bread rain trains cats snow tea".split()]
    _write_lines(folder / "pairs.jsonl", good_pairs)
    _write_lines(folder / "few.jsonl", good_pairs[:2])
    _write_lines(folder / "long.jsonl", [*good_pairs[:3], _pair("x" * 3000)])
    (folder / "torn.jsonl").write_text(json.dumps(good_pairs[0]) + '\n{"query": "a", \n')
    (folder / "half.jsonl").write_text('{"query": "a", "chosen": "b"}\n')
    (folder / "empty.jsonl").write_bytes(b"")
    return made


def _write_bert(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((40, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_profiles(make: Callable[..., Path], good: Path, folder: Path) -> None:
    others = {"other-shape": make("llama", n_embd=128), "other-kind": make("qwen2")}
    for name, path in {"fits": good, **others}.items():
        with Model.load(path, threads=1) as model:
            random_profile(model).save(folder / f"{name}.gguf")
    whole = (folder / "fits.gguf").read_bytes()
    (folder / "torn-profile.gguf").write_bytes(whole[: len(whole) // 2])


def _pair(topic: str) -> dict[str, str]:
    return {"query": f"And {topic}?", "chosen": f"I love {topic}!", "rejected": f"{topic}: bad."}


def _write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("\n".join(map(json.dumps, records)) + "\n", "utf-8")


def alignez(
    home: Path, arguments: list[str], largest: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`alignez` as a process; it can write no file beyond `largest` bytes, as on a full disk."""

    def limit() -> None:
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    environment = {key: value for key, value in os.environ.items() if key != "ALIGNEZ_MODEL"}
    environment |= {"ALIGNEZ_HOME": str(home), **variables}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
    )


def check(done: subprocess.CompletedProcess[str], code: int, error: str) -> None:
    """One line of error, at most one of hint, and nothing said on standard output."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ") and error in first, done.stderr
    assert len(rest) <= 1 and all(line.startswith("hint: ") for line in rest), done.stderr


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("nowhere.gguf", "no such file"),
        ("", "is a folder"),
        ("text.gguf", "not a GGUF file"),
        ("empty.gguf", "is empty"),
        ("cut-magic.gguf", "ends inside the header"),
        ("cut-header.gguf", "ends inside the header"),
        ("cut-keys.gguf", "more than the file can hold"),
        ("cut-half.gguf", "truncated"),
        ("cut-last.gguf", "truncated"),
        ("zeros-all.gguf", "not a GGUF file"),
        ("zeros-half.gguf", "holds zeros only"),
        ("zeros-most.gguf", "holds zeros only"),
        ("bert.gguf", "an embedding model (bert)"),
        ("fits.gguf", "a steering profile, not a model"),
        ("torn-profile.gguf", "ends inside"),
    ],
)
def test_what_is_no_model(files: Files, tmp_path: Path, model: str, error: str) -> None:
    check(alignez(tmp_path, [*RUN, "-m", files / model]), 2, error)


def test_the_environment_points_nowhere(files: Files, tmp_path: Path) -> None:
    done = alignez(tmp_path, RUN, ALIGNEZ_MODEL=files / "nowhere.gguf")
    check(done, 2, "no such file")


@pytest.mark.parametrize(
    ("profile", "error"),
    [
        ("nowhere.gguf", "no such file"),
        ("cut-half.gguf", "truncated"),
        ("torn-profile.gguf", "ends inside"),
        ("other-shape.gguf", "made for another model"),
        ("other-kind.gguf", "made for another model"),
        ("fits.gguf:nan", "not a finite number"),
        ("fits.gguf:inf", "not a finite number"),
        ("fits.gguf:abc", "not a finite number"),
        ("fits.gguf:1e300", "overflows"),
    ],
)
def test_what_is_no_profile(files: Files, tmp_path: Path, profile: str, error: str) -> None:
    check(alignez(tmp_path, [*RUN, "-m", str(files.model), "-p", files / profile]), 2, error)


def test_a_model_given_as_a_profile(files: Files, tmp_path: Path) -> None:
    model = str(files.model)
    check(alignez(tmp_path, [*RUN, "-m", model, "-p", model]), 2, "not a steering profile")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--temperature", "nan"], "--temperature is nan"),
        (["--temperature", "-0.5"], "--temperature is -0.5"),
        (["--max-tokens", "0"], "--max-tokens is 0"),
        (["--max-tokens", "-7"], "--max-tokens is -7"),
        (["--ctx", "4"], "context window only 4"),
    ],
)
def test_numbers_that_cannot_be(
    files: Files, tmp_path: Path, options: list[str], error: str
) -> None:
    check(alignez(tmp_path, [*RUN, "-m", str(files.model), *options]), 2, error)


def test_a_prompt_longer_than_the_context(files: Files, tmp_path: Path) -> None:
    done = alignez(tmp_path, ["run", "x" * 2000, "-m", str(files.model), "--threads", "1"])
    check(done, 2, "context window only 512")


@pytest.mark.parametrize(
    ("option", "file", "error"),
    [
        ("--queries", "nowhere.txt", "no such query file"),
        ("--queries", "empty.txt", "has no queries"),
        ("--queries", "blank.txt", "has no queries"),
        ("--queries", "latin.txt", "not UTF-8 text: line 2"),
        ("--queries", "broken.jsonl", "line 2: not JSON"),
        ("--queries", "long.txt", "too long"),
        ("--pairs", "nowhere.jsonl", "no such pair file"),
        ("--pairs", "empty.jsonl", "has no pairs"),
        ("--pairs", "torn.jsonl", "line 2: not JSON"),
        ("--pairs", "half.jsonl", "line 1: 'rejected' is missing"),
        ("--pairs", "few.jsonl", "2 of at least 4 usable pairs"),
        ("--pairs", "long.jsonl", "too long"),
    ],
)
def test_builds_that_cannot_be(
    files: Files, tmp_path: Path, option: str, file: str, error: str
) -> None:
    out = tmp_path / "bright.gguf"
    out.write_bytes(OLD)
    options = ["-m", str(files.model), "--quiet", "-o", str(out), option, files / file]
    check(alignez(tmp_path / "home", [*NEW_AXIS, *options]), 2, error)
    assert out.read_bytes() == OLD
    assert {path.name for path in tmp_path.iterdir()} <= {"bright.gguf", "home"}


@pytest.mark.parametrize(
    ("axis", "error"),
    [
        ("nowhere.toml", "no such axis file"),
        ("key.toml", "unknown key 'layer'"),
        ("broken.toml", "is not TOML"),
        ("half.toml", "positive is missing"),
        ("latin.txt", "not UTF-8"),
        ("bert.gguf", "not UTF-8"),
    ],
)
def test_what_is_no_axis(files: Files, tmp_path: Path, axis: str, error: str) -> None:
    check(alignez(tmp_path, ["build", files / axis, "-m", str(files.model)]), 2, error)


def test_a_full_disk_loses_nothing(files: Files, tmp_path: Path) -> None:
    out, home = tmp_path / "bright.gguf", tmp_path / "home"
    out.write_bytes(OLD)
    command = [*NEW_AXIS, "-m", str(files.model), "--quiet", "--json"]
    command += ["--pairs", files / "pairs.jsonl"]

    def is_full(room: int) -> None:
        check(alignez(home, [*command, "-o", str(out)], largest=room), 1, "cannot write")
        assert out.read_bytes() == OLD
        assert {path.name for path in tmp_path.iterdir()} == {"bright.gguf", "home"}

    is_full(6000)  # the work in progress takes more
    assert alignez(home, [*command, "-o", str(home / "elsewhere.gguf")]).returncode == 0
    is_full(1000)  # the work is finished: only the profile is to be written
    done = alignez(home, [*command, "-o", str(out)])
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["profile"] == str(out)


def test_a_folder_that_cannot_be_written(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # root may write into any folder but those that are no disk
        folder = Path("/proc")
    target = folder / "bright.gguf"
    command = [*NEW_AXIS, "-m", str(files.model), "--quiet", "-o", str(target)]
    command += ["--pairs", files / "pairs.jsonl"]
    check(alignez(tmp_path / "home", command), 1, "cannot write")
    assert not target.exists()


def test_a_home_that_is_a_file(files: Files, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_bytes(OLD)
    command = [*NEW_AXIS, "-m", str(files.model), "--quiet"]
    done = alignez(home, [*command, "--pairs", files / "pairs.jsonl"])
    check(done, 1, "cannot make the folder")
    assert home.read_bytes() == OLD

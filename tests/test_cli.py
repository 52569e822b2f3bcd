"""The commands as a whole: streams, exit codes, JSON and the words of errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer

import alignez_edge
from alignez_edge.errors import BadInputError
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.threads import calm
from cli.build import parse_layers
from cli.groups import grouped
from cli.layout import cells, compared, side_by_side, signed_bar, stacked, wrap
from cli.options import SamplingOptions
from cli.output import Progress, duration
from tests.terminal import ROOT, Alignez, in_terminal, process

RUN_KEYS = [
    "prompt",
    "prompt_text",
    "text",
    "model",
    "steering",
    "seed",
    "prompt_tokens",
    "completion_tokens",
    "tokens_per_second",
    "finish_reason",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's own, and no model chosen in the environment."""
    monkeypatch.setenv("ALIGNEZ_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGNEZ_MODEL", raising=False)
    return tmp_path / "home"


@pytest.fixture
def alignez(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Alignez:
    return Alignez(monkeypatch, capsys)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may look into."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    if os.access(folder, os.X_OK):
        pytest.skip("this user may look into any folder")
    yield folder
    folder.chmod(0o700)


@pytest.fixture
def use(tiny_chat: Path) -> list[object]:
    """The options that choose a tiny model and short answers."""
    return ["-m", tiny_chat, "--threads", 2, "--max-tokens", 6]


@pytest.fixture
def steer_file(chat_model: Model, tmp_path: Path) -> Path:
    """A profile for `tiny_chat` that changes what it says."""
    path = tmp_path / "bright.gguf"
    random_profile(chat_model, "bright").save(path)
    return path


def random_profile(model: Model, name: str, **more: Any) -> Profile:
    rows = np.zeros((model.n_layer, model.n_embd), np.float32)
    rows[2:4] = np.random.default_rng(0).standard_normal((2, model.n_embd))
    return Profile(
        axis=Axis(name, positive="bright", negative="dark"),
        vector=ControlVector(rows, rows),
        layers=(2, 3),
        fingerprint=model.fingerprint,
        method="planted",
        calibration={"strengths": (-1.0, 1.0), "margin": (-0.5, 0.5), "drift": (0.1, 0.2)},
        pairs=30,
        dropped={"equal answers": 2},
        **more,
    )


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# The face itself


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cli.main import main; main(['--help']);"
        "heavy = {'numpy', 'scipy', 'llama_cpp', 'gguf', 'rich', 'platformdirs'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


@pytest.mark.parametrize(("said", "found"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "None")])
def test_blas_gets_one_thread_unless_told(said: dict[str, str], found: str) -> None:
    """Its idle threads spin on the cores that llama.cpp computes on."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env = {key: value for key, value in os.environ.items() if key not in names} | said
    code = (
        "import os; from cli.main import main; main(['--version']);"
        "print(os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == found


def test_version_is_the_projects(alignez: Alignez) -> None:
    version = alignez_edge.__version__
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert alignez("--version").out == f"alignez {version}\n"


def test_lazy_names_are_there() -> None:
    assert alignez_edge.Axis is Axis and alignez_edge.Model is Model
    assert set(alignez_edge.__all__) <= set(dir(alignez_edge))
    with pytest.raises(AttributeError):
        alignez_edge.nothing  # noqa: B018


@dataclass
class Named:
    """A group whose option is called like another group."""

    other: Annotated[str, typer.Option()] = "none"


@dataclass
class Other:
    thing: Annotated[int, typer.Option()] = 1


def test_an_option_may_be_called_like_a_group() -> None:
    given = []

    @grouped
    def command(*, other: Other, named: Named) -> None:
        given.append((other, named))

    command(other="text", thing=2)
    assert given == [(Other(2), Named("text"))]


def test_defaults_are_the_librarys() -> None:
    ours, theirs = SamplingOptions(), Sampling()
    for name in ("seed", "temperature", "top_p", "max_tokens"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("command", [[], ["profile"], ["model"]])
def test_a_bare_noun_shows_its_help(alignez: Alignez, command: list[str]) -> None:
    said = alignez(*command)
    assert said.code == 0 and said.out.startswith("Usage: alignez")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["nothing"], "error: no such command 'nothing'"),
        (["run", "x", "--nothing"], "error: no such option: --nothing"),
        (["run", "x", "--seed", "x"], "error: invalid value for '--seed'"),
        (["run", "x", "--seed", "-1"], "error: --seed is -1; it must be at least 0"),
        (["run", "x", "--max-tokens", "0"], "error: --max-tokens is 0"),
        (["run", "x", "--max-tokens", "-3"], "error: --max-tokens is -3"),
        (["run", "x", "--temperature", "nan"], "error: --temperature is nan"),
        (["run", "x", "--temperature", "-1"], "error: --temperature is -1"),
        (["run", "x", "--top-p", "0"], "error: --top-p is 0"),
        (["run", "x", "--top-p", "inf"], "error: --top-p is inf"),
        (["run", "x", "--threads", "0"], "error: --threads is 0"),
        (["run", "x", "--gpu-layers", "-2"], "error: --gpu-layers is -2"),
        (["run", "x", "--parallel", "0"], "error: --parallel is 0"),
        (["run", "x", "--inject", "y"], "error: --inject cannot be 'y'"),
        (["run", " "], "error: the prompt is empty"),
        (["run", "x", "-m", "nowhere.gguf"], "error: no model called 'nowhere.gguf'"),
        (["run", "x", "-m", "a\0b"], "error: no model called 'a"),
        (["profile", "show", "nowhere"], "error: no profile called 'nowhere'"),
        (["model", "add", "x", "nowhere.gguf"], "error: no such"),
        (["build", "nowhere"], "error: no built-in axis is called 'nowhere'"),
        (["build", "x", "--negative", "a"], "error: --positive is missing"),
    ],
)
def test_wrong_use_is_one_line_and_2(alignez: Alignez, command: list[str], error: str) -> None:
    said = alignez(*command)
    assert (said.code, said.out) == (2, "")
    first, *rest = said.err.splitlines()
    assert first.startswith(error)
    assert len(rest) <= 1 and all(line.startswith("hint: ") for line in rest)


def test_unexpected_errors_are_one_line(alignez: Alignez, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise ZeroDivisionError("so\nodd")

    monkeypatch.setattr("alignez_edge.modelfiles.names.ModelNames.all", fail)
    said = alignez("model", "list")
    assert said.code == 1
    assert said.err.splitlines() == [
        "error: unexpected ZeroDivisionError: so odd",
        "hint: run it again with --debug for the details",
    ]
    assert "Traceback" in alignez("model", "list", "--debug").err


# run


def test_run_answers_in_plain_text(alignez: Alignez, use: list[object]) -> None:
    said = alignez("run", "hello", *use)
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith("\n") and said.out == alignez("run", "hello", *use).out


def test_run_json_has_the_keys_of_the_contract(
    alignez: Alignez, use: list[object], steer_file: Path, chat_model: Model
) -> None:
    said = alignez("run", "hello", *use, "--json", "--seed", 3, "-p", f"{steer_file}:0.5")
    (record,) = records(said.out)
    assert list(record) == RUN_KEYS
    assert record["prompt"] == "hello" and record["seed"] == 3
    prompt = chat_model.prompt([{"role": "user", "content": "hello"}])
    assert record["prompt_text"] == prompt.text
    assert record["prompt_tokens"] == len(prompt.tokens)
    assert record["steering"] == [{"profile": "bright", "strength": 0.5}]
    assert record["completion_tokens"] <= 6
    assert record["finish_reason"] in ("stop", "length")


def test_strength_0_is_the_plain_answer(
    alignez: Alignez, use: list[object], steer_file: Path
) -> None:
    plain = alignez("run", "hello", *use).out
    assert alignez("run", "hello", *use, "-p", f"{steer_file}:0").out == plain
    both = ["-p", f"{steer_file}:1", "-p", f"{steer_file}:-1"]
    assert alignez("run", "hello", *use, *both).out == plain
    assert alignez("run", "hello", *use, "-p", f"{steer_file}:5").out != plain


def test_run_answers_lines_in_their_order(
    alignez: Alignez, use: list[object], chat_model: Model
) -> None:
    prompts = [f"question {n}" for n in range(7)]
    said = alignez("run", *use, "--json", "--parallel", 3, stdin="\n\n".join(prompts) + "\n")
    found = records(said.out)
    assert [record["prompt"] for record in found] == prompts
    assert [record["seed"] for record in found] == list(range(7))
    assert [list(record) for record in found] == [RUN_KEYS] * 7
    same = chat_model.generate(prompts, sampling=Sampling(max_tokens=6), width=3)
    by_index = {answer.index: answer.text.strip() for answer in same}
    assert [record["text"] for record in found] == [by_index[n] for n in range(7)]


def test_lines_that_cannot_be_answered_are_named(alignez: Alignez, use: list[object]) -> None:
    stdin = b"one\n\n\xff\xfe\n" + b"x" * 3000 + b"\nlast\n"
    said = alignez("run", *use, stdin=stdin)
    assert said.code == 2
    assert said.out.count("\n") == 4, "an empty line stands for each that was not answered"
    assert "error: line 3: it is not UTF-8 text\n" in said.err
    assert "error: line 4: the prompt has 30" in said.err
    found = records(alignez("run", *use, "--json", stdin=stdin).out)
    assert [record["prompt"] for record in found] == ["one", "last"]


def test_nothing_on_standard_input_is_an_error(alignez: Alignez, use: list[object]) -> None:
    said = alignez("run", *use, stdin="\n \n")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: standard input holds no prompt")


def test_a_prompt_that_does_not_fit(alignez: Alignez, use: list[object]) -> None:
    said = alignez("run", "x" * 3000, *use)
    assert said.code == 2 and "context window only 512" in said.err
    assert alignez("run", "x", *use, "--ctx", 9999).code == 2


def test_a_profile_for_another_model_is_refused(
    alignez: Alignez, use: list[object], llama_model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "other.gguf"
    rows = np.ones((3, 8), np.float32)
    rows[0] = 0
    random_profile(llama_model, "other").save(path)
    said = alignez("run", "x", "-m", "demo", "-p", path)
    assert said.code == 2 and said.err.startswith("error: ")


def test_the_environment_names_the_model(
    alignez: Alignez, tiny_chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNEZ_MODEL", str(tiny_chat))
    said = alignez("run", "x", "--max-tokens", 2, "--json", "--threads", 2)
    assert records(said.out)[0]["model"] == tiny_chat.name


@pytest.mark.parametrize(
    ("arguments", "closed", "out", "code"),
    [
        (["--version"], [1], b"", 0),
        (["profile", "list"], [1], b"", 0),
        (["run", "MODEL"], [0], b"", 2),
        (["chat", "MODEL"], [0], b"", 0),
        (["run", "hello", "--json", "MODEL"], [2], b'{"prompt": "hello"', 0),
        (["run", "hello", "MODEL"], [0, 1, 2], b"", 0),
        (["nothing"], [2], b"", 2),
        (["nothing"], [1, 2], b"", 2),
    ],
)
def test_streams_may_be_closed(
    use: list[object], arguments: list[str], closed: list[int], out: bytes, code: int
) -> None:
    given = [part for word in arguments for part in (use if word == "MODEL" else [word])]
    running = process(*given, preexec_fn=lambda: list(map(os.close, closed)))
    said, err = running.communicate()
    assert running.returncode == code
    assert said.startswith(out) and bool(said) == bool(out)
    assert b"Traceback" not in err and b"unexpected" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_what_cannot_be_said_on_the_side_costs_no_answer(use: list[object]) -> None:
    with Path("/dev/full").open("wb") as full:
        running = process("run", "--json", *use, stderr=full)
        said, _ = running.communicate(b"one\n\xff\ntwo\n")
    assert running.returncode == 2
    assert [record["prompt"] for record in records(said.decode())] == ["one", "two"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(use: list[object]) -> None:
    with Path("/dev/full").open("wb") as full:
        running = process("run", "x", *use, stdout=full)
        _, err = running.communicate()
    assert running.returncode == 1
    assert err.decode() == "error: no space left on device\n"


def test_a_reader_that_leaves_is_no_error(use: list[object]) -> None:
    running = process("run", *use)
    assert running.stdin and running.stdout and running.stderr
    running.stdin.write(b"hello\n" * 400)
    running.stdin.close()
    assert running.stdout.readline()
    running.stdout.close()
    with running.stderr as complaint:
        assert complaint.read() == b""
    assert running.wait() == 1


def test_ctrl_c_is_130(tiny_chat: Path) -> None:
    running = process("run", "-m", tiny_chat, "--threads", 2, "--parallel", 1)
    assert running.stdin and running.stdout and running.stderr
    running.stdin.write(b"hello\n" * 5000)
    running.stdin.flush()
    assert running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 130
    assert b"Traceback" not in err


def test_ctrl_c_while_the_commands_are_read_is_130() -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from cli.main import main\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


LONG = "x" * 300
NAMES_OF_FILES = [
    ["run", "hi", "-m", "NAME"],
    ["model", "show", "-m", "NAME"],
    ["build", "NAME"],
    ["build", "polite", "MODEL", "--pairs", "none", "-o", "NAME"],
    ["profile", "export", "PROFILE", "--to", "control-vector", "-o", "NAME"],
    ["profile", "mix", "PROFILE", "PROFILE", "-o", "NAME"],
    ["plot", "strength", "PROFILE", "-o", "NAME.png"],
    ["plot", "strength", "NAME"],
    ["run", "hi", "-p", "NAME", "MODEL"],
]


@pytest.fixture
def with_name(
    alignez: Alignez, use: list[object], chat_model: Model, tmp_path: Path
) -> Callable[[list[str], str], None]:
    """Give a command a name of a file; it is to be refused in one line."""
    profiles = iter("ab")

    def profile() -> Path:
        name = next(profiles)
        random_profile(chat_model, name).save(tmp_path / f"{name}.gguf")
        return tmp_path / f"{name}.gguf"

    def refused(command: list[str], name: str) -> None:
        words: list[object] = []
        for word in command:
            if word == "MODEL":
                words += use[:4]
            else:
                words.append(profile() if word == "PROFILE" else word.replace("NAME", name))
        said = alignez(*words, *([] if "profile" in command else ["--quiet"]))
        assert (said.code, said.out) == (2, "")
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert errors[0].startswith(("error: cannot", "error: no "))

    return refused


@pytest.mark.parametrize("command", NAMES_OF_FILES, ids=" ".join)
def test_names_that_are_too_long(
    with_name: Callable[[list[str], str], None], command: list[str]
) -> None:
    with_name(command, LONG)


@pytest.mark.parametrize("command", NAMES_OF_FILES, ids=" ".join)
def test_places_that_nobody_may_look_at(
    with_name: Callable[[list[str], str], None], locked: Path, command: list[str]
) -> None:
    with_name(command, str(locked / "x"))


# model and profile


def test_model_show(alignez: Alignez, tiny_chat: Path) -> None:
    card = alignez("model", "show", "-m", tiny_chat)
    assert card.code == 0 and "6 of 64 dimensions" in card.out
    (facts,) = records(alignez("model", "show", "-m", tiny_chat, "--json").out)
    assert facts["n_layer"] == 6 and facts["architecture"] == "llama"
    assert facts["path"] == str(tiny_chat)


def test_short_names(alignez: Alignez, tiny_chat: Path, tiny_llama: Path, home: Path) -> None:
    assert alignez("model", "add", "mine", tiny_llama).code == 0
    assert "now means" in alignez("model", "add", "mine", tiny_chat).out
    assert str(tiny_chat) in alignez("model", "list").out
    assert records(alignez("model", "list", "--json").out)[1] == {
        "name": "mine",
        "path": str(tiny_chat),
        "exists": True,
    }
    assert alignez("run", "x", "-m", "mine", "--max-tokens", 2, "--threads", 2).code == 0
    assert "did you mean mine?" in alignez("run", "x", "-m", "mime").err
    assert alignez("model", "add", "demo", tiny_chat).code == 2
    assert "'a\\nb' cannot be the name" in alignez("model", "add", "a\nb", tiny_chat).err
    assert "no model called 'a\\nb', and" in alignez("run", "x", "-m", "a\nb").err
    alignez("model", "add", "mine", tiny_chat)
    (home / "models.json").write_text((home / "models.json").read_text().replace(".gguf", LONG))
    said = alignez("model", "list")
    assert said.code == 0 and "(missing)" in said.out
    (home / "models.json").write_text("[")
    assert "is damaged" in alignez("run", "x", "-m", "mine").err


def test_the_library_of_profiles(
    alignez: Alignez, chat_model: Model, home: Path, steer_file: Path
) -> None:
    folder = home / "profiles"
    assert alignez("profile", "path").out == f"{folder}\n"
    folder.mkdir(parents=True)
    (folder / "bright.gguf").write_bytes(steer_file.read_bytes())
    (folder / "broken.gguf").write_bytes(b"GGUF")
    assert alignez("profile", "path", "bright").out == f"{folder / 'bright.gguf'}\n"
    listed = {r["name"]: r for r in records(alignez("profile", "list", "--json").out)}
    assert listed["bright"]["axis"] == "bright" and listed["bright"]["origin"] == "user"
    assert "error" in listed["broken"]
    said = alignez("profile", "list")
    assert "cannot be used" in said.out and said.err.startswith("broken: ")
    assert all(len(line) < 120 for line in said.out.splitlines())
    card = alignez("profile", "show", "bright").out
    assert "bright / dark" in card and "2 equal answers" in card and "strength -1  -0.500" in card
    (facts,) = records(alignez("profile", "show", steer_file, "--json").out)
    assert facts["layers"] == [2, 3] and facts["calibration"]["strengths"] == [-1.0, 1.0]


# chat


def test_chat_from_a_pipe(alignez: Alignez, use: list[object], steer_file: Path) -> None:
    lines = ["hello", "/nothing", "/profile nowhere", f"/profile {steer_file}:2", "/strength nan"]
    lines += ["/strength -1", "x" * 3000, "hello", "/plain", "/plain", "/reset", "/help", "/quit"]
    said = alignez("chat", *use, "--json", stdin="\n".join([*lines, "never asked"]) + "\n")
    assert said.code == 0
    found = records(said.out)
    assert [record["prompt"] for record in found] == ["hello", "hello"]
    assert [record["steering"] for record in found] == [
        [],
        [{"profile": "bright", "strength": -1.0}],
    ]
    assert [record["seed"] for record in found] == [0, 1]
    assert found[1]["prompt_text"].count("<|im_start|>user") == 2
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    assert errors[0] == "error: there is no command /nothing"
    assert errors[1] == "error: no profile called 'nowhere', and no such file"
    assert errors[2] == "error: a strength must be a finite number, not nan"
    assert "context window only 512" in errors[3]
    assert "(plain)" in said.err and "(steered by bright -1)" in said.err


def test_chat_drops_the_oldest_turns(alignez: Alignez, use: list[object]) -> None:
    lines = [f"{n} " + "x" * 150 for n in range(5)]
    said = alignez("chat", *use, "--json", stdin="\n".join(lines) + "\n")
    found = records(said.out)
    assert len(found) == 5
    assert all(record["prompt_tokens"] <= 512 - 6 for record in found)
    assert "0 x" in found[0]["prompt_text"] and "0 x" not in found[-1]["prompt_text"]
    assert "not fit into the context any more" in said.err


def test_chat_compares(alignez: Alignez, use: list[object], steer_file: Path) -> None:
    stdin = "/compare\nhello\n/compare\n/compare other\n"
    said = alignez("chat", *use, "-p", f"{steer_file}:3", stdin=stdin)
    assert said.code == 0 and said.err.count("error: ") == 1
    assert said.out.count("plain") == 2 and said.out.count("steered by bright +3") == 2


def test_compare_repeats_the_answer_that_was_given(
    alignez: Alignez, use: list[object], steer_file: Path
) -> None:
    stdin = "one\ntwo\n/compare\n"
    said = alignez("chat", *use, "-p", f"{steer_file}:3", "--json", stdin=stdin)
    _, given, plain, steered = records(said.out)
    assert plain["compare"] == [] and steered["text"] == given["text"]


def test_chat_saves_a_transcript(alignez: Alignez, use: list[object], tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    said = alignez("chat", *use, stdin=f"hello\n/save {path}\nmore\n/save {path}\n")
    assert "error" not in said.err
    assert path.read_text("utf-8").startswith("> hello\n\n[plain]\n")
    assert "> more" in path.read_text("utf-8")
    assert "exists already" in alignez("chat", *use, stdin=f"/save {path}\n").err
    assert "error" in alignez("chat", *use, stdin=f"/save {tmp_path}/no/where\n").err


def test_chat_goes_on_where_it_cannot_save(
    alignez: Alignez, use: list[object], tmp_path: Path
) -> None:
    places = [LONG, "a\0b", tmp_path, tmp_path / "no" / "x"]
    lines = ["hello", *(f"/save {place}" for place in places), "hello"]
    said = alignez("chat", *use, "--json", "--quiet", stdin="\n".join(lines) + "\n")
    assert said.code == 0 and len(records(said.out)) == 2
    assert [line.partition(":")[0] for line in said.err.splitlines()].count("error") == len(places)


def test_chat_goes_on_where_it_may_not_save(
    alignez: Alignez, use: list[object], locked: Path
) -> None:
    said = alignez("chat", *use, "--json", "--quiet", stdin=f"hello\n/save {locked}/x\nhello\n")
    assert said.code == 0 and len(records(said.out)) == 2
    assert said.err == f"error: cannot look at {locked}/x: Permission denied\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_chat_in_a_terminal(tiny_chat: Path, steer_file: Path, chat_model: Model) -> None:
    arguments = ["chat", "-m", tiny_chat, "--threads", 2, "--max-tokens", 480]
    answer = "".join(chat_model.chat([{"role": "user", "content": "hello"}])).strip()
    begin = ascii(answer[0])[1:-1] if ord(answer[0]) < 32 else answer[0]
    steps = [
        ("> ", "hello\n"),
        ("hello\r\n", ""),
        (begin, "\x03"),
        ("(interrupted)", ""),
        ("> ", f"/profile {steer_file}\n"),
        ("(steered by bright +1)", ""),
        ("> ", "\x04"),
    ]
    text, code = in_terminal(arguments, steps)
    assert code == 0 and "Traceback" not in text
    assert "/help lists commands" in text


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_run_without_prompt_at_a_terminal(tiny_chat: Path) -> None:
    text, code = in_terminal(["run", "-m", tiny_chat], [])
    assert code == 2 and text.startswith("error: no prompt given")


# What is printed


def test_layers_are_parsed() -> None:
    assert parse_layers("3-5, 10,4") == [3, 4, 5, 10]
    for text in ("", "a", "3-", "-3", "5-3", "1,,2", "²", "1.5"):
        with pytest.raises(BadInputError):
            parse_layers(text)


def test_columns_fit_their_width() -> None:
    texts = ["a " * 50, "wide 漢字 " * 12, "with\x1b[2Jescape\nand lines"]
    for width in (40, 80, 120):
        shown = side_by_side(["one", "two", "three"], texts, width)
        assert all(cells(line) <= width for line in shown.splitlines())
        assert all(cells(line) <= width for text in texts for line in wrap(text, width))
    assert "one" in stacked(["one"], ["text"], 80)


def test_texts_are_stacked_where_columns_are_too_narrow() -> None:
    titles, texts = ["-p demo-cheerful:-1", "plain", "-p demo-cheerful:1"], ["word " * 30] * 3
    assert compared(titles, texts, 80) == side_by_side(titles, texts, 80)
    for width in (40, 60, 71):
        assert compared(titles, texts, width) == stacked(titles, texts, width)
        assert all(cells(line) <= width for line in compared(titles, texts, width).splitlines())
    assert compared(["plain", "x" * 40], texts[:2], 80) == stacked(
        ["plain", "x" * 40], texts[:2], 80
    )


def test_bars_are_symmetric() -> None:
    assert signed_bar(0, 4) == "....|...."
    assert signed_bar(0.5, 4) == "....|##.."
    assert signed_bar(-0.5, 4) == "..##|...."
    assert signed_bar(-7, 4) == "####|...."


def test_durations() -> None:
    said = [duration(s) for s in (0.04, 9.96, 99, 125, 7300)]
    assert said == ["0.0 s", "10 s", "99 s", "2 min 05 s", "2 h 1 min"]


def test_progress_off_a_terminal_is_sparse(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for step in ("pairs", "vectors"):
            for done in range(101):
                progress(step, done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["pairs", "vectors"]
    with Progress(quiet=True) as progress:
        progress("pairs", 1, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "spins", "blas"),
    [
        ({}, "4000", "1"),
        ({"GOMP_SPINCOUNT": "7"}, "7", "1"),
        ({"OMP_WAIT_POLICY": "active"}, None, "1"),
        ({"OMP_NUM_THREADS": "2"}, "4000", None),
        ({"OPENBLAS_NUM_THREADS": "3"}, "4000", "3"),
    ],
)
def test_waiting_threads_are_calm_unless_the_user_says_otherwise(
    given: dict[str, str], spins: str | None, blas: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    calm()
    assert (os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OPENBLAS_NUM_THREADS")) == (
        spins,
        blas,
    )


def test_a_program_that_imports_the_library_waits_calmly(tmp_path: Path) -> None:
    """Unless the user has said how: a library user's two processes on the same cores came to a
    near stop where the command's did not."""
    program = "import alignez_edge, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    for own, expected in (({}, "4000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, **own},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected

"""`alignez bench` as it is typed: its table, its JSON, its refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.terminal import Alignez

SHORT = ["--threads", 1, "--tokens", 8, "--repeat", 2, "--parallel", 2]
KEYS = [
    "model",
    "threads",
    "steering",
    "tokens",
    "decode",
    "steered",
    "width",
    "batch_tokens",
    "one_by_one",
    "batch",
    "batch_gain",
    "prefill",
    "capture_time",
    "resident_mb",
]


def without_numbers(text: str) -> str:
    return re.sub(r" +", " ", re.sub(r"-?[\d,]*\.?\d+", "N", text))


def test_a_table(alignez: Alignez, tiny_llama: Path) -> None:
    said = alignez("bench", "-m", tiny_llama, *SHORT, "--quiet")
    assert (said.code, said.err) == (0, "")
    assert without_numbers(said.out) == without_numbers(
        """\
Random model, F16, 6 layers of 64; 1 thread; steered by a random control vector
                          median                         lowest to highest
  prefill                 1 tokens/s                 1 to 1, 2 times
  reading hidden states   1 x the time of a prefill  1 to 1, 2 times
  decode, plain           1 tokens/s                 1 to 1, 2 times
  decode, control-vector  1 tokens/s                 1 to 1, 2 times
                          1 x plain                  1 to 1, 2 times
                          1 ms more a turn           1 to 1, 2 times
  answers one by one      1 tokens/s                 1 to 1, 2 times
  answers 2 at a time     1 tokens/s                 1 to 1, 2 times
                          1 x one by one             1 to 1, 2 times
  memory at most          1 MB
"""
    )


def test_json_is_one_object(alignez: Alignez, tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "polite.gguf"
    with Model.load(tiny_llama, threads=1) as model:
        random_profile(model, name="polite").save(path)
    said = alignez("bench", "-m", tiny_llama, "-p", f"{path}:0.5", *SHORT, "--json")
    assert said.code == 0
    (line,) = said.out.splitlines()
    found = json.loads(line)
    assert list(found) == KEYS
    assert found["steering"] == [{"profile": "polite", "strength": 0.5}]
    assert list(found["steered"]) == ["control-vector"]
    assert list(found["decode"]) == ["median", "low", "high", "rounds"]
    assert "(--inject exact is not available for the profile polite" in said.err
    only = ["--inject", "control-vector", "--quiet"]
    assert alignez("bench", "-m", tiny_llama, "-p", path, *SHORT, *only, "--json").err == ""


def test_a_slow_machine_measures_once(alignez: Alignez, tiny_llama: Path) -> None:
    said = alignez("bench", "-m", tiny_llama, *SHORT, "--seconds", 1e-6, "--quiet")
    assert said.code == 0
    assert said.out.count("measured once") == 9


def test_a_model_that_cannot_be_steered(alignez: Alignez, tiny_model: Callable[..., Path]) -> None:
    said = alignez("bench", "-m", tiny_model("llama", n_layer=1), *SHORT, "--json")
    assert said.code == 0
    assert json.loads(said.out)["steered"] == {}
    assert "cannot be steered" in said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", 7], "--tokens is 7"),
        (["--repeat", 0], "--repeat is 0"),
        (["--seconds", 0], "--seconds is 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--parallel", 0], "--parallel is 0"),
        (["-p", "nobody"], "nobody"),
        (["--inject", "bogus"], "--inject cannot be"),
    ],
)
def test_refusals(alignez: Alignez, tiny_llama: Path, options: list[object], message: str) -> None:
    said = alignez("bench", "-m", tiny_llama, *options)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and message in said.err


def test_profiles_that_do_not_fit_are_refused(
    alignez: Alignez, tiny_llama: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "other.gguf"
    with Model.load(tiny_model("llama", n_layer=5, seed=3), threads=1) as other:
        random_profile(other).save(path)
    said = alignez("bench", "-m", tiny_llama, "-p", path)
    assert said.code == 2 and "another model" in said.err
    with Model.load(tiny_llama, threads=1) as model:
        random_profile(model).save(path)
    said = alignez("bench", "-m", tiny_llama, "-p", f"{path}:0")
    assert (said.code, said.err) == (
        2,
        "error: the steering is zero: there is nothing to measure\n",
    )

"""A request's prompt is rendered once: who needs its text or its length is handed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from alignez_edge.chat.messages import Message
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Prompt, Weights
from tests.terminal import Alignez

ANSWER = Sampling(temperature=0, max_tokens=3)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all prompts that are rendered from now on."""
    texts: list[str] = []
    real = Weights.prompt

    def prompt(model: Weights, messages: Sequence[Message]) -> Prompt:
        texts.append(real(model, messages).text)
        return real(model, messages)

    monkeypatch.setattr(Weights, "prompt", prompt)
    return texts


@pytest.fixture
def alignez(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Alignez:
    monkeypatch.setenv("ALIGNEZ_HOME", str(tmp_path / "home"))
    return Alignez(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("command", "stdin", "n_answers"),
    [
        (["run", "hello"], "", 1),
        (["run"], "one\ntwo\n", 2),
        (["chat"], "one\ntwo\nthree\n", 3),
    ],
)
def test_an_answer_takes_one_rendering(
    alignez: Alignez,
    tiny_chat: Path,
    rendered: list[str],
    command: list[str],
    stdin: str,
    n_answers: int,
) -> None:
    use = ["-m", tiny_chat, "--threads", 2, "--max-tokens", 6, "--json", "--quiet"]
    said = alignez(*command, *use, stdin=stdin)
    assert said.code == 0
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [record["prompt_text"] for record in records] == rendered
    assert len(rendered) == n_answers


def test_a_session_says_what_it_answered(chat_model: Model, rendered: list[str]) -> None:
    messages: list[Message] = [{"role": "user", "content": "hello"}]
    with Session(chat_model) as session:
        assert session.prompt is None
        text = "".join(session.answer(messages, sampling=ANSWER))
        prompt = session.prompt
        assert prompt is not None and rendered == [prompt.text]
        assert "".join(session.answer(prompt, sampling=ANSWER)) == text
        assert session.prompt is prompt and len(rendered) == 1
        list(session.stream(prompt.tokens, ANSWER))
        assert session.prompt is None, "of tokens nobody knows the text"

"""Untrusted chat templates: a text, or a refusal of one line; in bounded time and memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from subprocess import Popen
from types import SimpleNamespace

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from alignez_edge.chat.template import ChatTemplate
from alignez_edge.errors import AlignezError, BadInputError, ModelFileError
from tests.vocabs import TEMPLATES, real_template

TALK = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because “so”.\n"},
    {"role": "user", "content": "{{ 7 * 7 }} <b>日本</b>"},
]
DOUBLED = "{% set n = namespace(x=START) %}{% for i in range(99) %}{% set n.x = MORE %}{% endfor %}"


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", list)


def rendered(source: str, messages: Sequence[dict[str, str]] = TALK) -> str:
    return "".join(span.text for span in template(source).spans(messages))


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_the_bindings_formatter(name: str) -> None:
    """What the models were trained on: the settings of Jinja are the usual ones."""
    source = real_template(name)
    formatter = Jinja2ChatFormatter(source, eos_token="</s>", bos_token="<s>")
    expected = formatter(messages=TALK, enable_thinking=False).prompt  # type: ignore[arg-type]
    assert rendered(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd') }}",
        "{{ ('{0.__class__.__init__.__globals__}').format(raise_exception) + 1 }}",
        "{% import 'os' as os %}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% for m in messages %}{% set m.role = 'system' %}{% endfor %}",
    ],
)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template does not work") as caught:
        rendered(source)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ range(10**12) | list }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        DOUBLED.replace("START", "'ab'").replace("MORE", "n.x ~ n.x"),
        DOUBLED.replace("START", "[1]").replace("MORE", "[n.x, n.x]") + "{{ n.x }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 100_000,
        "{{ " + "-" * 100_000 + "1 }}",
        "{% if x %}" * 10_000,
        "{{ 'a' * (1 << 25) }}",
    ],
)
def test_no_bomb_of_time_or_memory(source: str) -> None:
    """What a sandbox inside this process could not stop; seconds at most, on a busy machine too."""
    with pytest.raises(ModelFileError, match="chat template does not work") as caught:
        rendered(source)
    assert caught.value.message.isprintable() and len(caught.value.message) < 300


def test_a_template_may_refuse_in_its_own_words() -> None:
    with pytest.raises(BadInputError, match="refuses this conversation") as caught:
        rendered("{{ raise_exception('\x1b[31mred\x07\\nline') }}")
    assert type(caught.value) is BadInputError and caught.value.message.isprintable()


def test_it_goes_on_after_a_failure() -> None:
    kind = template("{% if messages|length > 1 %}{{ 'a' * 10**10 }}{% endif %}{{ bos_token }}ok")
    for _ in range(2):
        assert [span.text for span in kind.spans(TALK[:1])] == ["<s>ok"]
        with pytest.raises(ModelFileError):
            kind.spans(TALK)


def test_the_process_goes_with_the_template() -> None:
    kind = template("ok")
    kind.spans(TALK)
    process = kind._renderer._process
    assert process is not None and process.poll() is None
    del kind
    gc.collect()
    end = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert process.poll() is not None


def test_a_process_that_was_killed_is_begun_again() -> None:
    kind = template("ok")
    kind.spans(TALK)
    process = kind._renderer._process
    assert process is not None
    process.kill()
    process.wait()
    assert kind.spans(TALK)[0].text == "ok"


@pytest.mark.parametrize("at", range(1, 5))
def test_an_interrupt_does_not_put_answers_out_of_step(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    kind = template("{{ messages[0].content }}")
    ask = kind._renderer._ask

    def asking(process: Popen[str], given: Mapping[str, object]) -> str:
        assert process.stdout is not None
        real = process.stdout.readline

        def readline() -> str:
            """The question has gone out by now; nobody may read its answer later."""
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return real()

        with monkeypatch.context() as patch:
            patch.setattr(
                process, "stdout", SimpleNamespace(readline=readline, close=process.stdout.close)
            )
            return ask(process, given)

    monkeypatch.setattr(kind._renderer, "_ask", asking)
    for word in ("one", "two", "three"):
        try:
            spans = kind.spans([{"role": "user", "content": word}])
        except KeyboardInterrupt:
            continue
        assert [(span.text, span.trusted) for span in spans if span.text] == [(word, False)]
    assert calls > at


def test_a_template_of_absurd_length() -> None:
    with pytest.raises(AlignezError, match="characters"):
        template("x" * (1 << 21))

"""The demo model's recipe: rows and weights, attention, resuming, and the export to GGUF."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from llama_cpp import Llama as GGUFModel  # noqa: E402
from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # noqa: E402

from demo_model import data, export, model, parity, train  # noqa: E402
from demo_model import tokenizer as bpe  # noqa: E402
from demo_model.corpus import Document, documents  # noqa: E402
from demo_model.settings import ASSISTANT, BEGIN, END, USER, Settings  # noqa: E402

TINY = Settings(
    n_layer=2, n_vocab=400, init_std=0.15, tokens=4096, row=128, shards=2, late_shards=1,
    held_out_rows=4, tokenizer_documents=200, batch_rows=4, warmup_steps=2, evaluate_every=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with the corpus of `TINY` and untrained weights."""
    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("work")
    data.build(TINY, folder, processes=1)
    train.save(model.Llama(TINY).state_dict(), train.weights_path(folder))
    return folder


@pytest.fixture(scope="module")
def exported(work: Path) -> Path:
    export.run(TINY, work)
    return work


def load(path: Path) -> GGUFModel:
    return GGUFModel(str(path), n_ctx=TINY.context, n_threads=2, verbose=False)


@pytest.mark.parametrize("time", [1, 127, 128, 129, 300])
def test_block_attention_equals_the_reference(time: int) -> None:
    generator = torch.Generator().manual_seed(time)
    q = torch.randn(2, 4, time, 16, generator=generator)
    k, v = (torch.randn(2, 2, time, 16, generator=generator) for _ in range(2))
    reference = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True
    )
    torch.testing.assert_close(model.causal_attention(q, k, v), reference)


def test_later_tokens_do_not_change_earlier_logits() -> None:
    llama = model.Llama(TINY)
    tokens = torch.arange(10, 210)[None]
    changed = tokens.clone()
    changed[0, 150:] = 7
    with torch.no_grad():
        torch.testing.assert_close(llama(tokens)[:, :150], llama(changed)[:, :150])


def test_weight_classes_of_an_answer(work: Path) -> None:
    tokenizer = bpe.load(work)
    encoder = data.Encoder(tokenizer, TINY)
    first, rest = " One two three four five six seven eight nine.", [" Then more!", " And so on."]
    answer = first + "".join(rest)
    document = Document((("prompt", "Q: why. Because?"), ("answer", answer), ("special", END)))
    [(ids, codes)] = encoder.encode([document])
    tail = [len(bpe.encode(tokenizer, text)) for text in rest]
    prompt = 1 + len(bpe.encode(tokenizer, "Q: why. Because?"))
    turns = [len(ids) - 1 - sum(tail), len(ids) - 1 - tail[1], len(ids) - 1]
    assert codes[0] == data.Code.BEGIN
    assert set(codes[1:prompt]) == {data.Code.PROMPT}
    assert set(codes[prompt : prompt + TINY.opening_tokens]) == {data.Code.OPENING}
    assert np.flatnonzero(codes == data.Code.TURN).tolist() == turns
    assert set(codes[prompt + TINY.opening_tokens : turns[0]]) == {data.Code.ANSWER}


def test_only_the_end_of_answers_and_lists_weighs_more(work: Path) -> None:
    encoder = data.Encoder(bpe.load(work), TINY)
    for kind, code in (("prompt", "PROMPT"), ("answer", "TURN"), ("list", "TURN")):
        [(_, codes)] = encoder.encode([Document(((kind, " a b"), ("special", END)))])
        assert codes[-1] == data.Code[code]


def test_rows_begin_with_a_document_and_are_a_function_of_the_seed(work: Path) -> None:
    tokenizer = bpe.load(work)
    encoder = data.Encoder(tokenizer, TINY)
    tokens, codes = data.packed(encoder, iter(documents(1)), rows=6, length=129)
    again, _ = data.packed(encoder, iter(documents(1)), rows=6, length=129)
    begin = bpe.special_id(tokenizer, BEGIN)
    assert (tokens == again).all()
    assert (tokens[:, 0] == begin).all()
    assert ((tokens == begin) == (codes == data.Code.BEGIN)).all()
    # The rows are the documents in their order; only the last one of a row may be cut.
    stream = encoder.encode(list(islice(documents(1), 100)))
    for row in tokens:
        filled = 0
        while filled < len(row):
            ids, _ = next(stream)
            part = row[filled : filled + len(ids)]
            assert (part == ids[: len(part)]).all()
            filled += len(ids)


def test_work_of_another_corpus_is_refused(work: Path) -> None:
    with pytest.raises(data.StaleWorkError):
        data.build(dataclasses.replace(TINY, seed=2), work)


def test_a_resumed_run_equals_an_unbroken_one(work: Path, tmp_path: Path) -> None:
    finals = []
    for name, pauses in (("whole", [4]), ("parts", [2, 4])):
        folder = tmp_path / name
        folder.mkdir()
        for path in (*data.shard_paths(work, TINY), data.held_out_path(work)):
            (folder / path.name).symlink_to(path)
        for until in pauses:
            assert train.run(TINY, folder, threads=1, until=until, compiled=False)
        finals.append(torch.load(train.checkpoint_path(folder), weights_only=True))
    whole, parts = finals
    assert whole["step"] == parts["step"] == 4
    for name, weight in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], weight, rtol=0, atol=1e-6)


def test_f16_file_gives_the_logits_and_tokens_of_pytorch(exported: Path) -> None:
    figures = parity.run(TINY, exported)
    assert figures.positions >= 200
    assert figures.top1_agreement >= 0.99
    assert figures.max_difference < 0.2  # of logits that are tens wide with these large weights
    assert figures.texts_tokenised_alike == figures.texts


def test_without_the_permutation_the_logits_differ(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison has teeth: leaving the rows of q and k in place does not pass."""
    for name in ("tokenizer.json", "weights-100.pt"):
        (tmp_path / name).symlink_to(work / name)
    monkeypatch.setattr(export, "permuted", lambda weight, n_head: weight)
    weights = torch.load(train.weights_path(tmp_path), weights_only=True)
    export.write_f16(weights, TINY, tmp_path, export.gguf_path(tmp_path))
    assert parity.compare(TINY, tmp_path).top1_agreement < 0.9


def test_quantized_files_load_and_end_where_they_should(exported: Path) -> None:
    for kind in export.QUANTIZATIONS:
        loaded = load(export.gguf_path(exported, kind))
        assert loaded.n_vocab() == TINY.n_vocab
        end = bpe.special_id(bpe.load(exported), END)
        assert loaded.token_eos() == end
        assert loaded.tokenize(b"a", add_bos=True)[0] == loaded.token_bos()
        assert loaded.metadata["general.name"] == "alignez demo"


def rendered(messages: list[dict[str, str]], prompt: bool) -> str:
    formatter = Jinja2ChatFormatter(export.CHAT_TEMPLATE, END, BEGIN, add_generation_prompt=prompt)
    return formatter(messages=messages).prompt  # type: ignore[arg-type]


def test_chat_template_renders_the_corpus_form() -> None:
    """A conversation of the corpus, read back as messages, renders to the same text."""
    chats = [d for d in islice(documents(3), 400) if d.segments[0] == ("special", USER)]
    assert chats
    for document in chats[:40]:
        messages, role = [], ""
        for kind, text in document.segments:
            if kind == "special":
                role = {USER: "user", ASSISTANT: "assistant"}.get(text, "")
            elif kind in ("answer", "list"):
                messages.append({"role": "assistant", "content": text})
            elif role == "user":
                messages.append({"role": "user", "content": text.removeprefix("\n")})
        assert rendered(messages, prompt=False) == document.text() + "\n"
        asked = rendered(messages[:-1], prompt=True)
        assert document.text() == asked + messages[-1]["content"] + END


def test_chat_template_folds_the_system_message() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And?"},
    ]
    assert rendered(messages, prompt=True) == (
        f"{USER}\nBe kind.\n\nHello?{END}\n{ASSISTANT}\nHi.{END}\n{USER}\nAnd?{END}\n{ASSISTANT}\n"
    )

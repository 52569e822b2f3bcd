"""Building a profile as a library call: what it uses, keeps, repeats and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.build import choice, generate
from alignez_edge.build.build import MAX_HELD_BACK, MIN_PAIRS, build_profile, split
from alignez_edge.build.steps import STATES_CHUNK, Builder
from alignez_edge.calibration import free_running
from alignez_edge.directions.hidden_states import Tensor
from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.writing import alone_in
from alignez_edge.methods.table import BY_QUERY, METHODS
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.preferences.requests import FORMS
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model

AXIS = Axis("bright", positive="bright", negative="dark")
TOPICS = "bread rain trains cats snow tea maps birds salt glue wool milk".split()
QUERIES = [f"Tell me about {topic}." for topic in TOPICS]
MORE = [f"And what of {topic}?" for topic in TOPICS]


@pytest.fixture(autouse=True)
def short_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pinned time, and texts that are short."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setattr("alignez_edge.preferences.answers.DESCRIPTION_TOKENS", 32)
    monkeypatch.setattr(generate, "ANSWER_TOKENS", 12)
    monkeypatch.setattr(free_running, "N_TOKENS", 6)
    monkeypatch.setattr(free_running, "N_QUESTIONS", 4)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.jsonl"
    write(path, [pair(topic) for topic in TOPICS])
    return path


def pair(topic: str) -> dict[str, str]:
    return {"query": f"And {topic}?", "chosen": f"I love {topic}!", "rejected": f"{topic}: bad."}


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def saved(profile: Profile, folder: Path) -> bytes:
    profile.save(folder / "profile.gguf")
    return (folder / "profile.gguf").read_bytes()


@given(st.integers(MIN_PAIRS, 600))
def test_every_pair_is_for_the_directions_or_held_back(n_pairs: int) -> None:
    train, held_back = split(n_pairs)
    assert sorted([*train, *held_back]) == list(range(n_pairs))
    assert 1 <= len(held_back) <= MAX_HELD_BACK
    assert len(train) > len(held_back)


def test_more_pairs_keep_what_was_held_back() -> None:
    assert split(100)[1][:5] == split(23)[1]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_builds_from_labelled_pairs(
    llama_model: Model, labelled: Path, tmp_path: Path, method: str
) -> None:
    def make() -> Profile:
        return build_profile(llama_model, AXIS, pairs=labelled, method=method, layers=layers)

    layers = None if method == "recontrol" else [2, 4]
    profile = make()
    assert (profile.name, profile.method, profile.pairs) == ("bright", method, len(TOPICS))
    assert profile.layers == profile.vector.layers == tuple(layers or ())
    assert profile.edits_layers == (method != "recontrol")
    assert profile.injection(llama_model) is not None
    strengths = profile.calibration["strengths"]
    assert isinstance(strengths, tuple)
    assert list(strengths) == sorted(strengths) and 0 not in strengths
    assert saved(make(), tmp_path) == saved(profile, tmp_path)


@pytest.mark.parametrize("method", BY_QUERY)
def test_with_neighbors_each_query_has_a_steering_of_its_own(
    llama_model: Model, labelled: Path, tmp_path: Path, method: str
) -> None:
    def make() -> Profile:
        return build_profile(
            llama_model, AXIS, pairs=labelled, method=method, layers=[2, 4], neighbors=3
        )

    profile = make()
    assert profile.neighbors is not None and profile.exact is None
    assert profile.neighbors.bank.layers == (2, 4)
    assert (profile.neighbors.exact_unit is None) == (method == "alignez")
    assert saved(make(), tmp_path) == saved(profile, tmp_path)
    steering = profile.injection(llama_model)
    assert steering is not None and not isinstance(steering, Injection)
    rng = np.random.default_rng(1)
    states = rng.standard_normal((2, llama_model.n_layer, llama_model.n_embd)).astype(np.float32)
    one, other = (steering.at(each) for each in states)
    assert one is not None and other is not None
    if method == "alignez":
        assert np.abs(one.deciding - other.deciding).max() > 0
    else:
        assert one.deciding_edits and other.deciding_edits


def test_what_a_method_cannot_do_is_refused(llama_model: Model, labelled: Path) -> None:
    def refused(**options: Any) -> str:
        with pytest.raises(BadInputError) as failure:
            build_profile(llama_model, AXIS, pairs=labelled, **options)
        return failure.value.message

    assert refused(method="caa", neighbors=3) == "the method caa does not look at neighbors"
    assert refused(neighbors=0) == "0 neighbors are too few"
    assert refused(method="recontrol", layers=[2]) == "the method recontrol edits no layers"


def test_exchanged_sides_turn_the_profile_round(
    llama_model: Model, labelled: Path, tmp_path: Path
) -> None:
    """The same texts, but what was wanted is not: the control vector is the opposite one."""
    turned = tmp_path / "turned.jsonl"
    records = [json.loads(line) for line in labelled.read_text("utf-8").splitlines()]
    sides = [(r["query"], r["rejected"], r["chosen"]) for r in records]
    write(turned, [dict(zip(("query", "chosen", "rejected"), s, strict=True)) for s in sides])
    there = build_profile(llama_model, AXIS, pairs=labelled, layers=[2, 4])
    other = Axis("dim", positive="dark", negative=AXIS.positive)
    back = build_profile(llama_model, other, pairs=turned, layers=[2, 4])
    # Equal but for what the order of texts in a batch rounds differently.
    np.testing.assert_allclose(back.vector.deciding, -there.vector.deciding, atol=0.01)
    np.testing.assert_allclose(back.vector.answer, -there.vector.answer, atol=0.01)


def test_the_same_call_goes_on_with_the_same_pairs(
    llama_model: Model, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_profile(llama_model, AXIS, queries=QUERIES)
    (kept,) = home.rglob("pairs.jsonl")
    texts = kept.read_bytes()

    def no_more(*_: object, **__: object) -> None:
        raise AssertionError("a finished pair was generated again")

    monkeypatch.setattr("alignez_edge.runtime.batch.generate_batch", no_more)
    again = build_profile(llama_model, AXIS, queries=QUERIES)
    assert saved(again, tmp_path) == saved(first, tmp_path)
    assert kept.read_bytes() == texts


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_two_builds_do_not_write_the_same_files(
    llama_model: Model, tmp_path: Path, labelled: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for source in ({"queries": QUERIES[:8]}, {"pairs": labelled}):
        with alone_in(work), pytest.raises(AlignezError, match="another process is at work"):
            build_profile(llama_model, AXIS, work=work, **source)
    assert not list(work.iterdir())
    build_profile(llama_model, AXIS, queries=QUERIES, request="style", work=work)


def test_pairs_that_calibration_cannot_ask_are_left_out(llama_model: Model, tmp_path: Path) -> None:
    """It scores both answers with each side asked for, whatever requests the file brings."""
    own, longest = tmp_path / "own.jsonl", 0
    window = llama_model.n_ctx_train
    lines = []
    for i in range(24):
        answer = "ja " * (20 * i)
        lines.append({"query": f"{i}?", "chosen": answer + "so", "rejected": "no",
                      "chosen_request": "a?", "rejected_request": "b?"})  # fmt: skip
        longest = max(longest, len(llama_model.tokenize(answer, begin=False)))
    assert longest > window
    write(own, lines)
    profile = build_profile(llama_model, AXIS, pairs=own, work=tmp_path)
    assert 4 <= profile.pairs < 24
    assert profile.dropped == {"too long": 24 - profile.pairs}


@pytest.mark.parametrize("options", [{}, {"neighbors": 3}, {"method": "recontrol"}])
def test_a_window_beyond_the_default_one(
    llama_model: Model, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step has the room that `ctx` gives."""
    monkeypatch.setattr("alignez_edge.runtime.window.DEFAULT_CONTEXT", 128)
    own = tmp_path / "own.jsonl"
    lines = [
        {"query": "why and " * 30 + q, "chosen": f"Yes, {q}", "rejected": f"No {q}"}
        for q in QUERIES
    ]
    write(own, lines)
    profile = build_profile(llama_model, AXIS, pairs=own, work=tmp_path, ctx=512, **options)
    assert profile.pairs == len(QUERIES)
    with pytest.raises(BadInputError, match="12 too long"):
        build_profile(llama_model, AXIS, pairs=own, work=tmp_path / "less", **options)


def test_another_seed_writes_other_pairs(llama_model: Model, home: Path) -> None:
    for seed in (0, 1):
        assert build_profile(llama_model, AXIS, queries=QUERIES, seed=seed).seed == seed
    answers = []
    for path in home.rglob("pairs.jsonl"):
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]
        assert [record["query"] for record in records] == QUERIES
        answers.append({record["chosen"] for record in records} - {""})
    one, two = answers
    assert one and two and not one & two


def test_pairs_that_a_person_edits_count(llama_model: Model, tmp_path: Path) -> None:
    work = tmp_path / "work"
    before = build_profile(llama_model, AXIS, queries=QUERIES, request="style", work=work)
    header, *lines = (work / "pairs.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    usable = next(record for record in records if "dropped" not in record)
    usable["dropped"] = "not what I meant"
    write(work / "pairs.jsonl", [json.loads(header), *records])
    after = build_profile(llama_model, AXIS, queries=QUERIES, request="style", work=work)
    assert after.pairs == before.pairs - 1
    assert after.dropped["not what I meant"] == 1
    assert saved(after, tmp_path) != saved(before, tmp_path)


def test_limit_is_the_number_of_usable_pairs(llama_model: Model) -> None:
    queries = [*QUERIES, *QUERIES]
    profile = build_profile(llama_model, AXIS, queries=queries, request="style", limit=4)
    assert profile.pairs == 4 and 0 < sum(profile.dropped.values()) <= len(QUERIES) - 4


def test_a_larger_limit_goes_on_with_the_kept_pairs(
    llama_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    queries = [*QUERIES, *MORE]
    build_profile(llama_model, AXIS, queries=queries, limit=4, work=work, request="style")
    before = (work / "pairs.jsonl").read_text("utf-8").splitlines()
    asked: list[str] = []
    write = generate.write_answers

    def watched(complete: Any, axis: Axis, tasks: Any, **more: Any) -> Any:
        asked.extend(query for query, _ in tasks)
        return write(complete, axis, tasks, **more)

    monkeypatch.setattr(generate, "write_answers", watched)
    build_profile(llama_model, AXIS, queries=queries, limit=6, work=work, request="style")
    after = (work / "pairs.jsonl").read_text("utf-8").splitlines()
    assert after[: len(before)] == before and len(after) > len(before)
    kept = {json.loads(line)["query"] for line in before[1:]}
    assert asked and not kept & set(asked), "a finished pair was generated again"


def test_the_questions_of_the_calibration_are_no_pairs_of_the_directions(
    llama_model: Model, tmp_path: Path
) -> None:
    queries = [*QUERIES, *MORE]
    options: dict[str, Any] = {"limit": 8, "work": tmp_path, "request": "style"}
    profile = build_profile(llama_model, AXIS, queries=queries, **options)
    _, *lines = map(json.loads, (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines())
    usable = [line["query"] for line in lines if "dropped" not in line][:8]
    train, held_back = split(len(usable))
    questions = profile.report["questions"]
    assert questions[: len(held_back)] == [usable[i] for i in held_back]
    assert not {usable[i] for i in train} & set(questions)
    assert profile.report["verdict"]["figures"]["questions"] == len(questions) > len(held_back)
    assert profile.unit_negative is not None
    bare = build_profile(llama_model, AXIS, queries=queries, texts="none", **options)
    assert bare.report["questions"] == len(questions) and QUERIES[3] not in str(bare.report)


def test_the_form_of_request_is_chosen_kept_and_not_tried_again(
    llama_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    report = build_profile(llama_model, AXIS, queries=QUERIES, work=work).report["request"]
    scores = report["scores"]
    one_step = {form.name for form in FORMS.values() if not form.two_steps} - {"own"}
    assert report["form"] in scores and one_step == scores.keys() - {"two-steps"}
    kept = [score for score in scores.values() if score["pairs"] > choice.N_FIRST]
    assert choice.N_KEPT <= len(kept) <= choice.N_KEPT + 1
    header, *records = map(json.loads, (work / "pairs.jsonl").read_text("utf-8").splitlines())
    assert header["settings"]["request"] == report["form"]
    assert all(("dropped" in record) == (record.get("score", 0) <= 0) for record in records)

    def no_more(*_: object, **__: object) -> None:
        raise AssertionError("a form was tried again")

    monkeypatch.setattr("alignez_edge.build.steps.choose_request", no_more)
    again = build_profile(llama_model, AXIS, queries=QUERIES, work=work, method="mean")
    assert again.report["request"] == report


def test_the_states_come_with_the_answers(
    llama_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read a second time but what a person has edited. (A random model's answers are
    other tokens once they are read, so only the last prompt token's states can be compared.)"""
    read: list[int] = []
    real = Builder._read

    def spy(self: Builder, pairs: Sequence[PreferencePair], tensor: Tensor) -> Any:
        read.append(len(pairs))
        return real(self, pairs, tensor)

    monkeypatch.setattr(Builder, "_read", spy)
    builder = Builder(llama_model, AXIS, 0, 16, None, tmp_path, lambda *_: None)
    tensor = Tensor("l_out", llama_model.n_embd)
    found, _ = builder.generated(QUERIES, "style", len(QUERIES), tensor)
    with builder.states(found.pairs, tensor) as states:
        assert len(states) == len(found.pairs) and not read
        for n, (pair, (deciding, _)) in enumerate(
            zip(found.pairs, real(builder, found.pairs, tensor), strict=True)
        ):
            for side in (0, 1):
                kept = [np.asarray(part[side]) for part in states.record(n)]
                size = np.linalg.norm(kept[0])
                assert np.linalg.norm(kept[0] - deciding[side]) < 0.02 * size, pair
    edited = [replace(found.pairs[0], chosen="Bright!"), *found.pairs[1:]]
    with builder.states(edited, tensor):
        assert read == [min(STATES_CHUNK, len(edited))]


def test_a_form_can_be_given(llama_model: Model, tmp_path: Path) -> None:
    said: list[str] = []
    work = tmp_path / "work"
    for form in ("system", "list"):
        profile = build_profile(
            llama_model,
            AXIS,
            queries=[*QUERIES, *MORE],
            work=work,
            request=form,
            on_notice=said.append,
        )
        assert profile.report["request"] == {"form": form, "scores": {}, "weights": {}}
        lines = (work / "pairs.jsonl").read_text("utf-8").splitlines()
        systems = {json.loads(line).get("chosen_system") for line in lines[1:]}
        wanted = {"You are an extremely bright assistant."} if form == "system" else {None}
        assert systems == wanted
    (notice,) = said
    assert "was made under other settings" in notice
    with pytest.raises(BadInputError, match="has no words for the form own"):
        build_profile(llama_model, AXIS, queries=QUERIES, request="own")


def test_an_axis_with_one_side_only(llama_model: Model, tmp_path: Path) -> None:
    pirate = Axis("pirate", "talks like a pirate")
    profile = build_profile(llama_model, pirate, queries=QUERIES, work=tmp_path / "work")
    lines = (tmp_path / "work" / "pairs.jsonl").read_text("utf-8").splitlines()
    for record in map(json.loads, lines[1:]):
        assert record["rejected_request"] == record["query"] != record["chosen_request"]
    saved(profile, tmp_path)
    assert Profile.load(tmp_path / "profile.gguf").axis == pirate


def test_progress_goes_through_the_steps_in_order(llama_model: Model) -> None:
    seen: list[tuple[str, int, int]] = []
    build_profile(llama_model, AXIS, queries=QUERIES, on_progress=lambda *call: seen.append(call))
    steps = list(dict.fromkeys(step for step, _, _ in seen))
    assert steps == ["request", "pairs", "embeddings", "subspace", "calibration"]
    for step in steps:
        counts = [(done, total) for name, done, total in seen if name == step]
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1] > 0


def test_ctrl_c_passes_through(llama_model: Model) -> None:
    def stop(step: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_profile(llama_model, AXIS, queries=QUERIES, on_progress=stop)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"method": "magic"}, "no method is called 'magic'"),
        ({"layers": [0]}, "layers must lie in 1 to 5"),
        ({"layers": [6]}, "layers must lie in 1 to 5"),
        ({"queries": []}, "has no queries"),
        ({"queries": None}, "has no queries"),
        ({"queries": QUERIES[:2]}, "usable pairs"),
        ({"limit": 3}, "a limit of 3 pairs"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    llama_model: Model, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(BadInputError) as failure:
        build_profile(llama_model, AXIS, **{"queries": QUERIES, **options})
    assert error in failure.value.message and "\n" not in failure.value.message


def test_pairs_that_are_dropped_are_named_where_too_few_are_left(
    llama_model: Model, tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    same = {"chosen": "Fine.", "rejected": "Fine."}
    write(few, [pair("tea"), *({"query": f"{n}?", **same} for n in range(3))])
    with pytest.raises(BadInputError, match=r"1 of at least 4 usable .*3 equal answers"):
        build_profile(llama_model, AXIS, pairs=few)


def test_a_model_of_one_layer_cannot_be_steered(
    tiny_model: Callable[..., Path], labelled: Path
) -> None:
    """A control vector cannot edit layer 0."""
    with (
        Model.load(tiny_model("llama", n_layer=1), threads=1) as model,
        pytest.raises(BadInputError),
    ):
        build_profile(model, AXIS, pairs=labelled)


def test_another_model_in_the_same_work_folder_gets_its_own_states(
    llama_model: Model, tiny_model: Callable[..., Path], labelled: Path, tmp_path: Path
) -> None:
    with Model.load(tiny_model("llama", n_layer=6, seed=1), threads=2) as other:
        alone = build_profile(other, AXIS, pairs=labelled, work=tmp_path / "alone")
        build_profile(llama_model, AXIS, pairs=labelled, work=tmp_path / "shared")
        after = build_profile(other, AXIS, pairs=labelled, work=tmp_path / "shared")
    assert saved(after, tmp_path) == saved(alone, tmp_path)


def test_models_that_differ_in_one_matrix_share_no_work(
    home: Path, tiny_model: Callable[..., Path]
) -> None:
    """Not even where no sample of the fingerprint lies in it."""

    def other(name: str, values: np.ndarray) -> np.ndarray:
        return values * np.float32(1.5) if name == "blk.1.ffn_down.weight" else values

    digests = []
    for weights in ({}, {"weights": other}):
        with Model.load(tiny_model("llama", n_layer=5, **weights), threads=1) as model:
            build_profile(model, AXIS, queries=QUERIES)
            digests.append(model.fingerprint.digest())
    assert digests[0] == digests[1]
    assert len(list((home / "builds").iterdir())) == 2

"""A profile says how it was built, and is built again from that to the byte."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from alignez_edge.build import generate
from alignez_edge.build.build import build_profile
from alignez_edge.build.rebuild import build_like, differences, threads_of
from alignez_edge.errors import BadInputError
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile import provenance
from alignez_edge.profile.kept_pairs import kept_pairs
from alignez_edge.profile.profile import Profile
from alignez_edge.profile.provenance import KEY, ModelFile, Provenance, Source, queries_digest
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile

AXIS = Axis("bright", positive="bright", negative="dark", description="Bright or dark.")
TOPICS = "bread rain trains cats snow tea maps birds salt glue wool milk".split()
QUERIES = [f"Tell me about {topic}." for topic in TOPICS]


@pytest.fixture(autouse=True)
def short_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pinned time, and texts that are short."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setattr("alignez_edge.preferences.answers.DESCRIPTION_TOKENS", 32)
    monkeypatch.setattr(generate, "ANSWER_TOKENS", 12)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Iterator[Model]:
    with Model.load(tiny_llama, threads=1) as model:
        yield model


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.jsonl"
    pairs = [
        {"query": f"And {t}?", "chosen": f"I love {t}!", "rejected": f"{t}: bad."} for t in TOPICS
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    return path


def content(profile: Profile, folder: Path) -> bytes:
    profile.save(folder / "profile.gguf")
    return (folder / "profile.gguf").read_bytes()


def loaded(profile: Profile, folder: Path) -> Profile:
    """The profile as another person gets it."""
    profile.save(folder / "sent.gguf")
    return Profile.load(folder / "sent.gguf")


def test_it_says_what_it_was_built_on_and_from(model: Model, tmp_path: Path) -> None:
    profile = build_profile(
        model, AXIS, queries=QUERIES, limit=4, layers=[2, 4], width=4, ctx=300, work=tmp_path / "w"
    )
    found = Provenance.of(loaded(profile, tmp_path))
    assert found is not None
    assert found.model.sha256 == hashlib.sha256(model.path.read_bytes()).hexdigest()
    assert (found.model.name, found.model.size) == (model.path.name, model.path.stat().st_size)
    assert found.source == Source("queries", len(QUERIES), queries_digest(QUERIES))
    assert (found.limit, found.request) == (4, "auto")
    assert (found.layers, found.width, found.threads, found.ctx) == ((2, 4), 4, 1, 300)
    assert threads_of(profile) == 1


def test_the_digest_is_what_sha256sum_says(tmp_path: Path) -> None:
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(QUERIES) + "\n", "utf-8")
    assert queries_digest(QUERIES) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("texts", ["none", "some", "all"])
def test_texts_are_in_the_file_as_far_as_they_were_let_in(
    model: Model, tmp_path: Path, texts: Any
) -> None:
    profile = build_profile(model, AXIS, queries=QUERIES, texts=texts, work=tmp_path / "w")
    data = content(profile, tmp_path)
    count = sum(query.encode() in data for query in QUERIES)
    assert count == {"none": 0, "some": len(kept_pairs(profile)), "all": len(QUERIES)}[texts]
    assert bool(kept_pairs(profile)) == (texts != "none")
    for place in (tmp_path, model.path.parent, Path.home()):
        assert str(place).encode() not in data


@pytest.mark.parametrize(
    "options",
    [
        {"texts": "all"},
        {"texts": "all", "method": "caa", "seed": 3, "width": 3, "layers": [3], "ctx": 400},
        {"texts": "all", "neighbors": 3},
        {"texts": "some"},
        {"texts": "none", "author": "Zoë", "licence": "CC0-1.0", "limit": 4, "request": "style"},
    ],
)
def test_built_again_it_is_the_same_to_the_byte(
    model: Model, tmp_path: Path, options: dict[str, Any]
) -> None:
    first = build_profile(model, AXIS, queries=QUERIES, work=tmp_path / "first", **options)
    sent = loaded(first, tmp_path)
    offered = None if options["texts"] == "all" else QUERIES
    again = build_like(model, sent, queries=offered, work=tmp_path / "again")
    assert content(again, tmp_path) == content(first, tmp_path)
    assert differences(sent, model) == ""


def test_labelled_pairs_are_asked_for_and_checked(
    model: Model, labelled: Path, tmp_path: Path
) -> None:
    first = build_profile(model, AXIS, pairs=labelled, work=tmp_path / "first")
    again = build_like(model, first, pairs=labelled, work=tmp_path / "again")
    assert content(again, tmp_path) == content(first, tmp_path)
    with pytest.raises(BadInputError, match="does not contain the 12 pairs"):
        build_like(model, first)
    lines = labelled.read_text("utf-8").splitlines()
    labelled.write_text("\n".join(lines[:-1]) + "\n", "utf-8")
    with pytest.raises(BadInputError, match="these are not the pairs"):
        build_like(model, first, pairs=labelled)


def test_queries_are_asked_for_and_checked(model: Model, labelled: Path, tmp_path: Path) -> None:
    profile = build_profile(model, AXIS, queries=QUERIES, work=tmp_path / "w")
    with pytest.raises(BadInputError, match="does not contain its 12 queries"):
        build_like(model, profile)
    for wrong in (QUERIES[:-1], QUERIES[::-1], [*QUERIES[:-1], "Another?"]):
        with pytest.raises(BadInputError, match="these are not the 12 queries") as caught:
            build_like(model, profile, queries=wrong)
        assert caught.value.hint is not None and queries_digest(QUERIES) in caught.value.hint
    with pytest.raises(BadInputError, match="not from labelled pairs"):
        build_like(model, profile, pairs=labelled)
    longer = [*QUERIES, "One more?"]
    again = build_like(model, profile, queries=longer, work=tmp_path / "again")
    assert again.pairs == profile.pairs


def test_the_built_in_queries_need_not_be_given(model: Model, tmp_path: Path) -> None:
    axis = Axis.builtin("formal")
    first = build_profile(model, axis, limit=16, work=tmp_path / "first")
    again = build_like(model, loaded(first, tmp_path), work=tmp_path / "again")
    assert content(again, tmp_path) == content(first, tmp_path)


def test_another_model_gets_a_profile_of_its_own(
    model: Model, tiny_chat: Path, tmp_path: Path
) -> None:
    first = build_profile(model, AXIS, queries=QUERIES, texts="all", work=tmp_path / "first")
    with Model.load(tiny_chat, threads=1) as other:
        assert "the model's file" in differences(first, other)
        made = build_like(other, first, work=tmp_path / "other")
        assert made.injection(other) is not None
    told = Provenance.of(made)
    assert told is not None and told.model.name == tiny_chat.name


def test_a_profile_that_was_not_built_cannot_be_built_again(model: Model) -> None:
    with pytest.raises(BadInputError, match="does not say how it was built"):
        build_like(model, random_profile(model))
    assert threads_of(random_profile(model)) is None


def test_too_many_texts_are_refused_before_the_work(
    model: Model, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(provenance, "MAX_TEXTS", 100)
    with pytest.raises(BadInputError, match="a profile carries at most 100"):
        build_profile(model, AXIS, queries=QUERIES, texts="all")
    assert not list(home.rglob("pairs.jsonl"))


def record() -> dict[str, Any]:
    found = Provenance(
        ModelFile("m.gguf", "Q8_0", 7, "0" * 64), Source("queries", 2, "1" * 64, ("a", "b"))
    )
    return cast("dict[str, Any]", json.loads(json.dumps(asdict(found))))


def changed(keys: Sequence[str], value: Any) -> dict[str, Any]:
    found = inner = record()
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return found


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        changed(["model"], None),
        changed(["model", "name"], 7),
        changed(["model", "name"], "\x1b[2J"),
        changed(["model", "name"], "x" * 201),
        changed(["model", "size"], -1),
        changed(["model", "size"], 1.5),
        changed(["model", "sha256"], "0" * 63),
        changed(["model", "sha256"], "/etc/passwd"),
        changed(["source", "kind"], "url"),
        changed(["source", "kind"], ["queries"]),
        changed(["source", "count"], 0),
        changed(["source", "count"], 10**30),
        changed(["source", "queries"], 7),
        changed(["source", "queries"], [7]),
        changed(["source", "queries"], ["a\0b"]),
        changed(["source", "queries"], ["half \ud800"]),
        changed(["source", "queries"], ["x" * 8000] * 60),
        changed(["layers"], [-1]),
        changed(["layers"], 3),
        changed(["width"], 10**9),
        changed(["width"], True),
        changed(["threads"], 0),
        changed(["ctx"], "1"),
        changed(["neighbors"], -3),
    ],
)
def test_an_untrusted_record_is_sound_or_none(model: Model, value: Any) -> None:
    profile = random_profile(model)
    assert Provenance.of(replace(profile, report={KEY: record()})) is not None
    assert Provenance.of(replace(profile, report={KEY: value})) is None


def test_sha256sum_agrees_on_the_model(model: Model) -> None:
    try:
        said = subprocess.run(["sha256sum", model.path], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("there is no sha256sum here")
    assert said.stdout.split()[0] == ModelFile.of(model).sha256

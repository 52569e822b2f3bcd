"""The benchmark against peers: its arithmetic, its vectors, and that it runs and goes on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.preferences.axes import Axis
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.session import Session
from benchmarks import peers, peers_vectors
from benchmarks.llamacpp import built
from benchmarks.peers_answers import PeerAnswers, complete_everywhere, rows_at
from benchmarks.peers_curves import Curve, Sign, figures
from benchmarks.planted import OTHERS, WORD, planted_model
from benchmarks.real import Judged
from tests.profiles import random_profile

GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.mark.parametrize(
    ("target", "strength", "effect"),
    [
        (0.1, 0.5, 0.5),
        (0.4, 1.5, 1.25),
        (0.6, 2.0, 1.5),
        (0.9, 3.0, 0.0),  # never reached: the last strength, whatever it does
        (0.0, 0.0, 0.0),
        (-0.1, 0.0, 0.0),
    ],
)
def test_the_effect_is_read_where_the_cost_is_that_of_prompting(
    target: float, strength: float, effect: float
) -> None:
    effects, costs = np.array([[0.0], [1.0], [1.5], [0.0]]), np.array([[0.0], [0.2], [0.6], [0.5]])
    found = Curve(np.array([0.0, 1.0, 2.0, 3.0]), effects, costs, np.array([target])).at_prompting()
    assert (found.strength[0], found.effect[0]) == pytest.approx((strength, effect))
    if 0 <= target <= 0.6:
        assert found.cost[0] == pytest.approx(target)


def test_shares_are_taken_at_equal_cost_and_paired() -> None:
    """A peer of half the effect at half the cost is as good as ours, one at equal cost is not."""
    rng = np.random.default_rng(0)
    base, ones = rng.normal(size=(12, 2)), np.ones((12, 2))
    plain = Judged(base, ones, ones)
    signs: tuple[Sign, Sign] = (1, -1)
    prompted = {sign: Judged(base + 0.7 * sign, 1.5 * ones, ones) for sign in signs}

    def curve(sign: Sign, effect: float, cost: float) -> Curve:
        points = {s: Judged(base + sign * s * effect, (1 + s * cost) * ones, ones) for s in (1, 4)}
        return Curve.of(sign, plain, prompted[sign], {float(s): j for s, j in points.items()})

    kinds = {"ours": (1.0, 0.5), "thrifty": (0.5, 0.25), "half": (0.5, 0.5)}
    found = figures(
        plain, prompted, {k: {s: curve(s, *v) for s in signs} for k, v in kinds.items()}
    )
    rows = found["contenders"]
    assert list(rows) == ["prompt", "ours", "thrifty", "half", "ours, at +1 and −1"]
    assert [rows[k]["share of ours"].mean for k in ("prompt", "thrifty", "half")] == pytest.approx(
        [0.7, 1.0, 0.5]
    )
    assert rows["thrifty"]["-"]["strength"] == pytest.approx(2.0)
    assert rows["thrifty"]["-"]["effect"].high == pytest.approx(-1.0), "arms are paired"
    assert rows["prompt"]["span"].mean == pytest.approx(1.4)
    assert [point["strength"] for point in rows["half"]["curve"]["-"]] == [-1.0, -4.0]


def test_a_curve_goes_on_until_it_costs_what_prompting_costs() -> None:
    assert list(peers._grid([2.0, 1.0]))[:4] == [1.0, 2.0, 3.0, 4.5]
    assert max(peers._grid([1.0])) <= peers.FARTHEST


def step_by_step(model: Model, prompt: tuple[int, ...], rows: FloatArray) -> list[int]:
    """The greedy answer with llama.cpp's own control vector set for the whole text."""
    found: list[int] = []
    with Context(model) as context:
        context.set_control_vector(rows)
        context.prefill(prompt[:-1])
        token = prompt[-1]
        for at in range(len(prompt) - 1, len(prompt) - 1 + GREEDY.max_tokens):
            context.decode([token], [at], [0], [True])
            token = int(np.argmax(context.logits(0)))
            if model.is_end(token):
                break
            found.append(token)
    return found


def test_a_vector_everywhere_acts_on_the_prompt_as_well(chat_model: Model) -> None:
    profile = random_profile(chat_model)
    rows = rows_at(profile, 3.0)
    assert np.array_equal(rows, profile.vector.answer * np.float32(3 * profile.unit))
    prompts = [chat_model.ask_tokens(text) for text in ("Who are you?", "Who is she?", "Why?")]
    requests = [Request(prompt, GREEDY, i) for i, prompt in enumerate(prompts)]
    done = {each.index: each for each in complete_everywhere(chat_model, requests, rows, width=2)}
    everywhere = [list(done[i].tokens) for i in range(len(prompts))]
    assert everywhere == [step_by_step(chat_model, tuple(prompt), rows) for prompt in prompts]
    later = []
    for prompt in prompts:
        with Session(chat_model) as session:
            for _ in session.stream(prompt, GREEDY, Injection(rows, rows)):
                pass
            assert session.completion is not None
            later.append(list(session.completion.tokens))
    assert everywhere != later, "where the prompt is plain the answers are others"


def test_lines_differ_in_the_persona_alone(chat_model: Model) -> None:
    axis = Axis.builtin("cheerful")
    every = peers_vectors.lines_of(chat_model, axis, ["That game", "I can see"], 10**6)
    for positive, negative in every:
        assert positive != negative
        persona = next(p for p in ("happy", "ecstatic", "delighted") if p in positive)
        other = {"happy": "sad", "ecstatic": "depressed", "delighted": "dismayed"}[persona]
        assert positive.replace(f"extremely {persona}.", f"extremely {other}.") == negative
    some = peers_vectors.lines_of(chat_model, axis, ["That game", "I can see"], 5)
    assert len(some) == 5 and some[0] == every[0] and some[-1] == every[-1]
    (line,) = peers_vectors.lines_of(chat_model, Axis.builtin("polite"), ["Yes, sir"], 1)
    assert "extremely polite." in line[0] and "extremely rude." in line[1]


def test_each_layer_is_turned_to_the_side_of_the_other(chat_model: Model) -> None:
    profile = random_profile(chat_model, layers=(2, 3))
    rows = profile.vector.answer.copy()
    rows[3] *= -1
    vector = type(profile.vector)(rows, rows)
    turned = peers_vectors.signed_like(random_profile(chat_model, vector=vector), profile)
    assert np.array_equal(turned.vector.answer, profile.vector.answer)


@pytest.mark.skipif(built("llama-cvector-generator") is None, reason="the generator is not built")
def test_the_generators_vectors_are_added_as_llama_cpp_adds_them(tmp_path: Path) -> None:
    """One layer late. What its PCA finds is not always right, but on the side of the means."""
    program = built("llama-cvector-generator")
    assert program is not None
    planted = planted_model(tmp_path)
    lines = [(WORD, other) for other in OTHERS] + [(WORD, "longer")]
    with Model.load(planted.path, threads=1) as model:
        run = partial(peers_vectors.run_program, program)
        found = peers_vectors.with_generator(run, model, lines, tmp_path)
    mean, pca = (found[method].vector.answer for method in ("mean", "pca"))
    assert planted.layers_of(mean) == [None, 0, 1, 2, 3, 4]
    assert found["pca"].layers == (1, 2, 3, 4, 5)
    assert (np.sum(mean * pca, axis=1) >= 0).all()


def test_it_runs_and_goes_on(
    tiny_chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Model.load(tiny_chat, threads=1) as model:
        random_profile(model, 0, "cheerful").save(tmp_path / "cheerful.gguf")
        for layer in (2, 3):
            caa = random_profile(model, layer, "cheerful", (layer,))
            caa.save(tmp_path / f"cheerful-caa-{layer}.gguf")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- peers -->\n<!-- /peers -->\nb\n", encoding="utf-8")
    wanted = ["ours", "ours, everywhere", "CAA"]
    arguments = ["--model", str(tiny_chat), "--threads", "1", "--folder", str(tmp_path)]
    arguments += ["--queries", "3", "--choosing", "2", "--tokens", "6", "--layers", "2", "3"]
    arguments += ["--strengths", "2", "1", "--contenders", *wanted]
    peers.main([*arguments, "--page", str(page)])
    table = capsys.readouterr().out.strip()
    assert page.read_text("utf-8") == f"a\n<!-- peers -->\n{table}\n<!-- /peers -->\nb\n"
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert rows == ["prompt (style)", *wanted, "ours, at +1 and −1"]

    log = tmp_path / "answers.jsonl"
    whole = log.read_text("utf-8").splitlines()
    log.write_text("\n".join(whole[:-3]) + '\n{"key": "torn', encoding="utf-8")
    peers.main([*arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert set(result["contenders"]) == {"prompt", *wanted, "ours, at +1 and −1"}
    assert result["layers"]["CAA"] in ([2], [3])
    for row in (result["contenders"][name] for name in wanted):
        for side, sign in (("+", 1), ("-", -1)):
            strengths = [point["strength"] for point in row["curve"][side]]
            assert strengths[0] == sign and strengths == sorted(strengths, key=abs)
            costs = [point["nats above plain"]["mean"] for point in row["curve"][side]]
            target = result["contenders"]["prompt"][side]["nats above plain"]["mean"]
            assert all(cost < target for cost in costs[1:-1]), "it goes on while it is cheaper"
            assert costs[-1] >= target or abs(strengths[-1]) * peers.GROWTH > peers.FARTHEST
    assert sorted(log.read_text("utf-8").splitlines()) == sorted(whole)

    def nothing(*_: object) -> None:
        raise AssertionError("everything is there already")

    monkeypatch.setattr(PeerAnswers, "_make", nothing)
    monkeypatch.setattr(PeerAnswers, "_make_everywhere", nothing)
    peers.main(arguments)
    capsys.readouterr()


def test_a_strength_of_0_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        peers.main(["--strengths", "0", "1"])
    assert ended.value.code == 2
    assert "strengths are above 0" in capsys.readouterr().err

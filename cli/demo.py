"""`alignez demo`: the whole story on the bundled model in about a minute."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer

from alignez_edge.errors import AlignezError

from .groups import grouped
from .layout import compared, pad, paragraph, signed_bar, terminal_width
from .options import SeedOption, ThreadsOption, check_seed
from .output import Output, duration

if TYPE_CHECKING:
    from alignez_edge.preferences.axes import Axis, Side
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.injection import Steers
    from alignez_edge.runtime.model import Model

AXIS = "cheerful"
NAME = "demo-cheerful"
N_BUILD = 32
N_SHOWN = 2
N_MEASURED = 24
MAX_TOKENS = 96


@grouped
def demo(
    *,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Build the profile anew even if it is there.")
    ] = False,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    out: Output,
) -> None:
    """Show the whole story on the bundled model in about a minute.

    Builds a profile from pairs that the model writes itself, answers questions that the profile
    has never seen plain and steered, and measures the difference with a rule judge.
    """
    from alignez_edge.demo.bundled import demo_queries
    from alignez_edge.preferences.axes import Axis
    from alignez_edge.runtime.model import Model

    check_seed(seed)
    axis = Axis.builtin(AXIS)
    with Model.demo(threads=threads) as model:
        _say(
            out,
            f"The model is a small base model ({model.facts.parameters / 1e6:.1f} million "
            f"parameters, {model.facts.quantization}) that answers questions about everyday "
            f"things. Nothing has tuned it to be {axis.positive} or {axis.negative}.",
        )
        profile = _profile(model, axis, fresh, seed, out)
        unseen = demo_queries("unseen")
        _show_answers(model, profile, [entry["query"] for entry in unseen[:N_SHOWN]], seed, out)
        _show_scores(model, profile, axis, unseen[:N_MEASURED], seed, out)
    out.result()
    out.result("Try it yourself:")
    out.result(f'  alignez run  -p {NAME} "Tell me about bread."')
    out.result(f'  alignez run  -p {NAME}:-1 "Tell me about bread."')
    out.result(f"  alignez chat -p {NAME}        (then: /compare Tell me about bread.)")
    out.result("  alignez build formal          (another axis, on the same model)")
    out.result("  alignez build polite -m your-model.gguf")


def _say(out: Output, text: str) -> None:
    out.result(paragraph(text))
    out.result()


def _profile(model: Model, axis: Axis, fresh: bool, seed: int, out: Output) -> Profile:
    """The demo's profile: the one that is there if it fits, else a new one."""
    from alignez_edge.build.build import build_profile
    from alignez_edge.demo.bundled import demo_queries
    from alignez_edge.profile.library import ProfileLibrary
    from alignez_edge.profile.profile import Profile

    library = ProfileLibrary()
    if library.called(NAME) and not fresh:
        try:
            profile = Profile.load(library.find(NAME, model.fingerprint))
            (profile * 1.0).notices(model)
        except AlignezError:
            out.notice("the profile of an earlier demo does not fit any more: building it anew")
        else:
            out.result("Steering with the profile of an earlier demo (--fresh rebuilds it).\n")
            return profile
    _say(
        out,
        f"Now it writes {N_BUILD} pairs of answers itself, one as a {axis.positive} and one as a "
        f"{axis.negative} assistant would give it. What differs inside the model between the two "
        "becomes the profile: no labels, no training.",
    )
    queries = [entry["query"] for entry in demo_queries("build")][:N_BUILD]
    with out.resumable("the demo"), out.progress() as progress:
        profile = build_profile(model, axis, queries=queries, seed=seed, on_progress=progress)
    path = library.save(NAME, profile)
    spent = duration(sum(progress.seconds.values()))
    size = path.stat().st_size / 1000
    _say(
        out,
        f"Done in {spent}: {profile.pairs} usable pairs, "
        f"layers {', '.join(map(str, profile.layers))}, a file of {size:.0f} kB.",
    )
    return profile


def _answers(model: Model, prompts: Sequence[str], steering: Steers | None, seed: int) -> list[str]:
    from alignez_edge.runtime.requests import Sampling

    sampling = Sampling(seed=seed, max_tokens=MAX_TOKENS)
    answers = model.generate(prompts, steering=steering, sampling=sampling)
    ordered = sorted(answers, key=lambda answer: answer.index)
    return [answer.text.strip() for answer in ordered]


def _show_answers(
    model: Model, profile: Profile, queries: Sequence[str], seed: int, out: Output
) -> None:
    sides = {
        f"-p {NAME}:-1": profile * -1.0,
        "plain": None,
        f"-p {NAME}:1": profile * 1.0,
    }
    columns = [_answers(model, queries, steering, seed) for steering in sides.values()]
    for query, texts in zip(queries, zip(*columns, strict=True), strict=True):
        out.result(f"> {query}\n")
        out.result(compared(list(sides), texts, terminal_width()))
        out.result()
        negative, plain, positive = texts
        out.record({"query": query, "negative": negative, "plain": plain, "positive": positive})


def _show_scores(
    model: Model,
    profile: Profile,
    axis: Axis,
    unseen: Sequence[dict[str, str]],
    seed: int,
    out: Output,
) -> None:
    from alignez_edge.demo.rules import judge
    from alignez_edge.preferences import prompts

    queries = [entry["query"] for entry in unseen]
    topics = [entry["topic"] for entry in unseen]

    def prompted(side: Side) -> list[str]:
        return [prompts.prompted(query, axis, side) for query in queries]

    positive, negative = (prompts.trait(axis, side) for side in prompts.SIDES)

    conditions = [
        ("plain", queries, None),
        ("steered +1", queries, profile * 1.0),
        ("steered -1", queries, profile * -1.0),
        (f"asked to be {positive}", prompted("positive"), None),
        (f"asked to be {negative}", prompted("negative"), None),
    ]
    scores: dict[str, float] = {}
    with out.progress() as progress:
        for done, (name, texts, steering) in enumerate(conditions):
            progress("measuring", done * len(queries), len(conditions) * len(queries))
            answers = _answers(model, texts, steering, seed)
            verdicts = [judge(a, t) for a, t in zip(answers, topics, strict=True)]
            scores[name] = mean(verdict.scores[axis.name] for verdict in verdicts)
        progress("measuring", len(conditions) * len(queries), len(conditions) * len(queries))
    _say(
        out,
        f"How {axis.positive} is that? A rule judge that knows nothing of the model scores the "
        f"answers to {len(queries)} questions that the profile has never seen:",
    )
    title, half = max(map(len, scores)), 16
    scale = f"{'-1 ' + negative:<{half}}0{positive + ' +1':>{half}}"
    out.result(f"  {'':<{title}}         {scale}")
    for name, score in scores.items():
        out.result(f"  {pad(name, title)}  {score:+.2f}  {signed_bar(score, half)}")
    out.record({"axis": axis.name, "queries": len(queries), "scores": scores})
    steered = scores["steered +1"] - scores["steered -1"]
    asked = scores[f"asked to be {positive}"] - scores[f"asked to be {negative}"]
    if asked > 0:
        out.result()
        out.result(f"  Steering moves the score by {steered:+.2f}; prompting by {asked:+.2f}.")

"""The model writes its own preference pairs, chunk by chunk, until there are enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from alignez_edge.arrays import DoubleArray
from alignez_edge.calibration.consensus import Text
from alignez_edge.preferences import prompts
from alignez_edge.preferences.answers import Complete, n_completions, write_answers
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pair_store import PairStore
from alignez_edge.preferences.pairs import NO_DIFFERENCE, PairSet, PreferencePair, drop_reason
from alignez_edge.preferences.requests import FORMS, TWO_STEPS, RequestForm

CHUNK = 16
"""Queries a chunk: 32 requests at once keep 16 sequences busy, and little is lost at a kill."""
_LEAST_CHUNK = 4
_MORE = 1.25
"""Queries that are asked for each pair that is still missing."""
ANSWER_TOKENS = 64
"""Tokens of an answer at most: the style of an answer shows in its first sentences."""
Score = Callable[[Sequence[tuple[Text, Text]]], Sequence[float] | DoubleArray]
"""How far apart the two texts of each pair are, in nats per token; above 0: the right way round."""


def generate_pairs(
    complete: Complete,
    axis: Axis,
    queries: Sequence[str],
    store: PairStore,
    *,
    seed: int,
    form: RequestForm = FORMS[TWO_STEPS],
    chat: bool = True,
    limit: int | None = None,
    fits: Callable[[str], bool] = lambda query: True,
    score: Score | None = None,
    keep: Callable[[Sequence[PreferencePair]], None] = lambda pairs: None,
    on_progress: Callable[[int, int], None] | None = None,
    chunk: int = CHUNK,
) -> PairSet:
    """The model's own pairs, from `store` where they are there, else generated.

    `queries` are asked in `form`, one chunk after another, until `limit` usable pairs are there or
    the queries run out (None: all queries). Those that do not fit the model's window (`fits`) are
    passed over. `score` scores the pairs of a chunk; those that do not score above 0 are dropped.
    `keep` is given those of a chunk that are left, before they reach the file.
    `on_progress(done, total)` counts completions. Every seed is derived from `seed`, the query, its
    side and its step, so neither a kill nor more queries change a pair.
    """
    queries = list(dict.fromkeys(queries))
    wanted = len(queries) if limit is None else min(limit, len(queries))
    each, done, end = n_completions(form, axis), 0, 0
    found = PairSet((), {})

    def report(steps: int) -> None:
        nonlocal done
        done += steps
        if on_progress is not None:
            on_progress(done, each * max(wanted, end))

    while end < len(queries) and len(found.pairs) < wanted:
        # Some more than are missing, as some of them will be dropped.
        size = max(_LEAST_CHUNK, math.ceil(_MORE * (wanted - len(found.pairs))))
        part = queries[end : end + min(size, chunk)]
        if not store.torn:
            # What a build with another limit has finished stays as it is, and is not asked again.
            kept = next((n for n, query in enumerate(part) if query not in store), 0)
            part = part[:kept] or part
        end += len(part)
        missing = [query for query in part if query not in store]
        if missing:
            short = [query for query in part if fits(query)]
            entries = _generate_chunk(complete, axis, short, form, chat, seed, score, report)
            if len(short) < len(part):
                report(each * (len(part) - len(short)))
            keep([pair for pair, reason in entries if reason is None])
            found_of = {entry[0].query: entry for entry in entries}
            # Pairs that are there stay as they are: a person may have edited them.
            store.append([found_of.get(query, _too_long(query)) for query in missing])
        else:
            report(each * len(part))
        found = store.result(queries[:end])
    return PairSet(found.pairs[:wanted], found.dropped, tuple(queries[:end]))


def _generate_chunk(
    complete: Complete,
    axis: Axis,
    queries: Sequence[str],
    form: RequestForm,
    chat: bool,
    seed: int,
    score: Score | None,
    report: Callable[[int], None],
) -> list[tuple[PreferencePair, str | None]]:
    """Both sides of a few queries: pairs with the reason to drop them, or None."""
    written = write_answers(
        complete,
        axis,
        [(query, form) for query in queries],
        chat=chat,
        seed=seed,
        max_tokens=ANSWER_TOKENS,
        tick=lambda: report(1),
    )
    entries: list[tuple[PreferencePair, str | None]] = []
    for query, (wanted, unwanted) in zip(queries, written, strict=True):
        pair = PreferencePair(
            query,
            prompts.cut_next_turn(wanted.text),
            prompts.cut_next_turn(unwanted.text),
            wanted.request.user,
            unwanted.request.user,
            wanted.request.system,
            unwanted.request.system,
        )
        described = wanted.described and unwanted.described
        reason = drop_reason(wanted.text, unwanted.text) if described else "no characteristics"
        entries.append((pair, reason))
    usable = [n for n, (_, reason) in enumerate(entries) if reason is None]
    if score is None or not usable:
        return entries
    texts = [
        (
            Text(queries[n], entries[n][0].chosen, form.name, written[n][0].ended),
            Text(queries[n], entries[n][0].rejected, form.name, written[n][1].ended),
        )
        for n in usable
    ]
    for n, value in zip(usable, score(texts), strict=True):
        reason = None if value > 0 else NO_DIFFERENCE
        entries[n] = replace(entries[n][0], score=round(float(value), 4)), reason
    return entries


def _too_long(query: str) -> tuple[PreferencePair, str]:
    """The entry of a query that was not asked."""
    return PreferencePair(query, "", "", query, query), "too long"

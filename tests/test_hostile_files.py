"""Hostile files by name: each is refused with one line, or shown without harm.

What each format refuses besides is in its own tests; what nobody has thought of is the fuzzer's
(`test_fuzz.py`). Chat templates are in `test_templates.py`.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from alignez_edge.errors import BadInputError
from alignez_edge.exchange.vectorfile import read_control_vector
from alignez_edge.files.gguf_values import MAX_STRINGS, MAX_TEXT
from alignez_edge.files.gguffile import MAX_KEYS, MAX_TENSORS, read_gguf
from alignez_edge.files.reading import MAX_DOTS, MAX_LINE
from alignez_edge.interventions.bank import MOST_PAIRS, Bank
from alignez_edge.interventions.by_query import Recipe
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.modelfiles.lora import read_lora
from alignez_edge.preferences.axes import MAX_FILE as MAX_AXIS
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pairs import MAX_PAIRS, read_labelled_pairs
from alignez_edge.preferences.queries import MAX_QUERIES, read_queries
from alignez_edge.profile.file import MAX_CELLS
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.check import check_model
from alignez_edge.runtime.model import Model
from tests.fuzz import FIXED
from tests.mutations import Parts, Tensor, parts_of
from tests.profiles import random_profile
from tests.seeds import BASE, write_seeds
from tests.terminal import Alignez, in_terminal
from tests.tinymodels import tiny_model

EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\r\n\u202eback\u2028"
UINT32, FLOAT32, STRING, ARRAY, FLOAT64 = 4, 6, 8, 9, 12
AXIS = Axis("x", "a", "b")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<IQ", STRING, len(raw)) + raw


def read(kind: str, path: Path, seeds: Path) -> object:
    """Read a file as the program does."""
    if kind == "profile":
        return Profile.load(path)
    if kind == "lora":
        return read_lora(path, read_gguf(seeds / BASE)).content()
    if kind == "vector":
        return read_control_vector(path)
    check_model(read_gguf(path))
    return None


def refused(call: Callable[[], object]) -> str:
    """The message of a refusal, which is one clear line."""
    with pytest.raises(BadInputError) as caught:
        call()
    message = caught.value.message
    assert message.isprintable() and 10 < len(message) < 1000
    return message


# --- headers, whatever kind of file they begin --------------------------------------------------

Change = Callable[[Parts], Parts]


def pairs(**changed: bytes) -> Change:
    """A file with keys added."""
    extra = tuple((key.encode(), value) for key, value in changed.items())
    return lambda parts: replace(parts, pairs=(*parts.pairs, *extra))


def first(**changed: object) -> Change:
    """A file whose first tensor is described otherwise."""
    return lambda parts: replace(
        parts,
        tensors=(replace(parts.tensors[0], **changed), *parts.tensors[1:]),  # type: ignore[arg-type]
    )


def moved(parts: Parts) -> Parts:
    a, b, *rest = sorted(parts.tensors, key=lambda tensor: tensor.offset)
    return replace(parts, tensors=(a, replace(b, offset=a.offset), *rest))


HEADERS: dict[str, tuple[Change, str]] = {
    "all tensors there are": (
        lambda parts: replace(parts, counts=(2**64 - 1, None)),
        "announces 18446744073709551615 tensors, more than the file can hold",
    ),
    "all keys there are": (
        lambda parts: replace(parts, counts=(None, 2**63)),
        "announces 9223372036854775808 keys, more than the file can hold",
    ),
    "one key too many": (
        lambda parts: replace(parts, counts=(None, len(parts.pairs) + 1)),
        "",
    ),
    "an array of all strings": (
        pairs(x=struct.pack("<IIQ", ARRAY, STRING, 2**61)),
        "announces 2305843009213693952 strings, more than fit",
    ),
    "an array of all numbers": (
        pairs(x=struct.pack("<IIQ", ARRAY, FLOAT64, 2**64 - 1)),
        "the file ends inside the value of 'x'",
    ),
    "an array of arrays": (pairs(x=struct.pack("<IIQ", ARRAY, ARRAY, 1)), "an array of arrays"),
    "a string of 2 GiB": (pairs(x=struct.pack("<IQ", STRING, 2**31)), "the file ends inside"),
    "a string of all bytes": (
        pairs(x=struct.pack("<IQ", STRING, 2**64 - 1)),
        "the file ends inside",
    ),
    "a negative offset": (first(offset=2**64 - 32), "truncated: tensor"),
    "an offset that wraps round": (first(offset=2**64 - 2**32), "truncated: tensor"),
    "an offset between rows": (first(offset=3), "not a multiple of 32"),
    "overlapping tensors": (moved, "overlap"),
    "an unknown tensor type": (first(type=999), "the unknown type 999"),
    "a shape that overflows": (first(dims=(2**32, 2**32)), "an impossible shape"),
    "a negative extent": (first(dims=(2**64 - 1, 1)), "an impossible shape"),
    "an extent of nothing": (first(dims=(0,)), "an impossible shape"),
    "no extents": (first(dims=()), "says 0 dimensions"),
    "too many extents": (first(dims=(1,) * 1000), "says 1000 dimensions"),
    "a key twice": (lambda parts: replace(parts, pairs=(*parts.pairs, parts.pairs[-1])), "twice"),
    "a tensor twice": (
        lambda parts: replace(parts, tensors=(*parts.tensors, parts.tensors[0])),
        "is there twice",
    ),
    "a name without an end": (first(name=b"n" * 70), "70 bytes; at most 63"),
    "a name that is no text": (first(name=b"\xff\xfe\xfd"), "is not UTF-8"),
    "a twice-named key of control characters": (
        lambda parts: replace(parts, pairs=(*parts.pairs, *[(EVIL.encode(), string(""))] * 2)),
        r"\x1b]0;owned\x07\x1b[31mred\x9b2J\r\n\u202eback",
    ),
    "a tensor named in control characters": (
        first(name="\x1b[2J\u202e".encode(), type=999),
        r"\x1b[2J\u202e",
    ),
    "another byte order": (lambda parts: replace(parts, version=3 << 24), "big-endian"),
    "a version of tomorrow": (lambda parts: replace(parts, version=4), "GGUF version 4"),
}


@pytest.mark.parametrize("kind", ["profile", "lora", "model", "vector"])
def test_headers(seeds: Path, tmp_path: Path, kind: str) -> None:
    parts = parts_of((seeds / f"{kind}-{'1' if kind == 'vector' else '0'}").read_bytes())
    path = tmp_path / "bad.gguf"
    for name, (change, words) in HEADERS.items():
        path.write_bytes(change(parts).encoded())
        message = refused(lambda: read(kind, path, seeds))
        assert words in message, f"{name}: {message}"


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("keys", struct.pack("<QQ", 0, MAX_KEYS + 1), f"at most {MAX_KEYS}"),
        ("tensors", struct.pack("<QQ", MAX_TENSORS + 1, 0), f"at most {MAX_TENSORS}"),
        (
            "strings",
            struct.pack("<QQQ1sIIQ", 0, 1, 1, b"x", ARRAY, STRING, MAX_STRINGS + 1),
            f"at most {MAX_STRINGS}",
        ),
        (
            "a real string of 2 GiB",
            struct.pack("<QQQ1sIQ", 0, 1, 1, b"x", STRING, 2**31),
            f"at most {MAX_TEXT}",
        ),
    ],
)
def test_what_is_really_there_is_bounded_too(
    tmp_path: Path, name: str, head: bytes, words: str
) -> None:
    """Files of 3 GiB that keep what they announce; their bytes are holes on the disk."""
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<I", 3) + head)
        file.truncate(3 << 30)
    tracemalloc.start()
    try:
        assert words in refused(lambda: read_gguf(path))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# --- profiles -----------------------------------------------------------------------------------


def changed(parts: Parts, key: str, value: bytes | None) -> Parts:
    """The file with another value of a key, or without it."""
    others = tuple(pair for pair in parts.pairs if pair[0] != key.encode())
    return replace(parts, pairs=others if value is None else (*others, (key.encode(), value)))


def with_numbers(parts: Parts, tensor: Tensor, raw: bytes) -> Parts:
    """The file with the first numbers of a tensor replaced."""
    data = bytearray(parts.data)
    data[tensor.offset : tensor.offset + len(raw)] = raw
    return replace(parts, data=bytes(data))


@pytest.mark.parametrize("number", range(5))
def test_profiles_with_numbers_that_are_none(seeds: Path, tmp_path: Path, number: int) -> None:
    """NaN and infinities in every tensor and every floating-point key, of every kind of profile."""
    parts = parts_of((seeds / f"profile-{number}").read_bytes())
    path = tmp_path / "bad.gguf"
    for value in (np.nan, np.inf, -np.inf):
        for tensor in parts.tensors:
            half = tensor.type == 1
            raw = np.array([value], np.float16 if half else np.float32).tobytes()
            path.write_bytes(with_numbers(parts, tensor, raw).encoded())
            assert "finite" in refused(lambda: Profile.load(path))
        for key, stored in parts.pairs:
            kind, element = struct.unpack_from("<II", stored + bytes(4))
            single = {FLOAT64: "<d", FLOAT32: "<f"}.get(element if kind == ARRAY else kind)
            if single:
                start = 16 if kind == ARRAY else 4
                bad = struct.pack(single, value)
                bad = stored[:start] + bad + stored[start + len(bad) :]
                path.write_bytes(changed(parts, key.decode(), bad).encoded())
                refused(lambda: Profile.load(path))


@pytest.mark.parametrize("number", range(5))
def test_profiles_with_tensors_of_another_type_or_shape(
    seeds: Path, tmp_path: Path, number: int
) -> None:
    parts = parts_of((seeds / f"profile-{number}").read_bytes())
    path = tmp_path / "bad.gguf"
    for at, tensor in enumerate(parts.tensors):
        for other in (
            replace(tensor, type=1 - tensor.type),
            replace(tensor, type=26),  # I32, as wide as F32
            replace(tensor, dims=(tensor.dims[0] - 1, *tensor.dims[1:]) if at else (1,)),
            replace(tensor, name=tensor.name + b"x"),
        ):
            tensors = (*parts.tensors[:at], other, *parts.tensors[at + 1 :])
            path.write_bytes(replace(parts, tensors=tensors).encoded())
            message = refused(lambda: Profile.load(path))
            assert "tensor" in message or "value function" in message, message


def peak(call: Callable[[], object]) -> int:
    """The most bytes that were taken during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_file_for_a_giant_of_a_model(seeds: Path, tmp_path: Path) -> None:
    """Its arrays are as large as the model says it is: within bounds that real models keep."""
    parts = parts_of((seeds / "profile-0").read_bytes())
    path = tmp_path / "giant.gguf"
    for n_layer, n_embd, fits in ((10_000, n := MAX_CELLS // 10_000, True), (10_000, n + 1, False)):
        for key, size in (("n_layer", n_layer), ("n_embd", n_embd)):
            parts = changed(parts, f"profile.{key}", struct.pack("<IQ", 10, size))
        step = -(-4 * n_embd // 32) * 32
        rows = [replace(t, dims=(n_embd,), offset=i * step) for i, t in enumerate(parts.tensors)]
        made = replace(parts, tensors=tuple(rows), data=b"\0\0\x80\x3f" * (2 * step // 4))
        path.write_bytes(made.encoded())
        if fits:
            most = 2 * path.stat().st_size + 20 * MAX_CELLS + FIXED
            assert peak(lambda: Profile.load(path)) < most
        else:
            assert "impossible sizes" in refused(lambda: Profile.load(path))


def test_a_large_bank_takes_twice_its_size(llama_model: Model, tmp_path: Path) -> None:
    rng, n_embd = np.random.default_rng(0), llama_model.n_embd
    pairs = rng.normal(size=(2, 2, 2, MOST_PAIRS, n_embd)).astype(np.float16)
    scales = np.ones((2, 2, 2), np.float32)
    bank = Bank((2, 3), "ffn_out", pairs, scales, pairs[:, 0, 0], scales[:, 0, 0])
    path = tmp_path / "bank.gguf"
    random_profile(llama_model, intervention=Neighborhood(bank, Recipe())).save(path)
    Profile.load(path)
    assert peak(lambda: Profile.load(path)) < 2 * path.stat().st_size


@pytest.mark.parametrize(
    "key",
    [
        "axis.name", "axis.positive", "axis.negative", "axis.description", "axis.positive_prompt",
        "method", "author", "licence", "created_at", "model", "dropped", "versions",
    ],
)  # fmt: skip
def test_texts_of_profiles_that_would_reach_the_terminal(
    seeds: Path, tmp_path: Path, alignez: Alignez, key: str
) -> None:
    parts = parts_of((seeds / "profile-0").read_bytes())
    path = tmp_path / "bad.gguf"
    texts = [EVIL]
    if key in ("dropped", "versions"):
        texts = [json.dumps({EVIL: 1}), json.dumps({"x": EVIL})]
    for text in texts:
        path.write_bytes(changed(parts, f"profile.{key}", string(text)).encoded())
        refused(lambda: Profile.load(path))
        said = alignez("profile", "show", path)
        assert (said.code, said.out) == (2, "")
        assert all(line.isprintable() for line in said.err.splitlines())


@pytest.mark.parametrize("name", ["../../.bashrc", "/etc/passwd", "a/b", "..", "C:\\x", "con.", ""])
def test_names_that_are_paths(
    seeds: Path, tmp_path: Path, alignez: Alignez, home: Path, name: str
) -> None:
    parts = parts_of((seeds / "profile-0").read_bytes())
    path = tmp_path / "bad.gguf"
    path.write_bytes(changed(parts, "profile.axis.name", string(name)).encoded())
    assert "cannot be named" in refused(lambda: Profile.load(path))
    said = alignez("profile", "import", path, "--name", name)
    assert said.code == 2
    assert not home.exists() and [entry.name for entry in tmp_path.iterdir()] == ["bad.gguf"]


def test_a_report_of_anything_is_shown_without_harm(
    seeds: Path, tmp_path: Path, alignez: Alignez
) -> None:
    """A report may say anything that JSON can: what is shown of it is checked where it is shown."""
    parts = parts_of((seeds / "profile-2").read_bytes())
    path = tmp_path / "odd.gguf"
    evil: list[object] = [EVIL, -1, 1e308, [], {}, None, [[EVIL]], {EVIL: EVIL}, "\ud800", 10**400]
    known = ("mix", "build", "check", "geometry", "imported", "held_back", "orthogonal_to")
    reports = [{key: value} for key in known for value in evil]
    mix = json.loads(dict(parts.pairs)[b"profile.report"][12:])["mix"]
    reports.append({"mix": {**mix, "parts": [{**part, "profile": EVIL} for part in mix["parts"]]}})
    for report in reports:
        path.write_bytes(changed(parts, "profile.report", string(json.dumps(report))).encoded())
        for option in ([], ["--json"]):
            said = alignez("profile", "show", path, *option)
            assert said.code == 0, said.err
            odd = [line for line in said.out.splitlines() if not line.isprintable()]
            assert not odd, report


def test_the_library_lists_what_it_cannot_use(seeds: Path, alignez: Alignez, home: Path) -> None:
    folder = home / "profiles"
    folder.mkdir(parents=True)
    parts = parts_of((seeds / "profile-0").read_bytes())
    good = parts.encoded()
    (folder / "good.gguf").write_bytes(good)
    (folder / "evil.gguf").write_bytes(changed(parts, "profile.author", string(EVIL)).encoded())
    (folder / "torn.gguf").write_bytes(good[: len(good) // 2])
    (folder / f"{EVIL.replace('/', '')}.gguf").write_bytes(good)
    (folder / "..gguf").write_bytes(good)
    (folder / "folder.gguf").mkdir()
    said = alignez("profile", "list")
    assert said.code == 0 and all(line.isprintable() for line in said.out.splitlines())
    lines = {line.split()[0]: line for line in said.out.splitlines()[1:]}
    assert {"good", "evil", "torn"} <= set(lines) and "folder" not in lines
    assert "cannot be used" in lines["evil"] and "cannot be used" in lines["torn"]
    said = alignez("run", "hello", "-p", "evil", "--threads", 1)
    assert (said.code, said.out) == (2, "") and "control characters" in said.err
    assert all(line.isprintable() for line in said.err.splitlines())
    listed = map(json.loads, alignez("profile", "list", "--json").out.splitlines())
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["evil"]["error"].isprintable() and "error" not in by_name["good"]


# --- models and adapters ------------------------------------------------------------------------


def test_a_model_that_talks_to_the_terminal(tmp_path: Path) -> None:
    """Its name, its tokenizer's name and all that it says are full of control characters."""
    model = tiny_model(
        tmp_path,
        metadata={"general.name": f"Nice {EVIL}", "general.description": EVIL},
        template="{% for m in messages %}" + EVIL + "{{ m.content }}{% endfor %}",
        n_layer=2,
    )
    use = ["-m", model, "--threads", 1]
    for arguments in (
        ["model", "show", *use],
        ["run", "hello", *use, "--max-tokens", 60, "--temperature", 3, "--quiet"],
    ):
        text, code = in_terminal(arguments, [])
        assert code == 0
        odd = {c for line in text.splitlines() for c in line.replace("\t", "") if ord(c) < 32}
        assert not odd | ({*text} & {"\x7f", "\x9b", "\u202e", "\u2028"}), repr(text)
    assert "\\x1b" in text or "\\x" in text, "the model has said control characters"


@pytest.mark.parametrize("kind", ["model", "lora"])
def test_words_in_headers_are_never_printed_raw(
    seeds: Path, tmp_path: Path, alignez: Alignez, kind: str
) -> None:
    parts = parts_of((seeds / f"{kind}-0").read_bytes())
    path = tmp_path / "bad.gguf"
    option = ["-m", path] if kind == "model" else ["-m", seeds / BASE, "--lora", path]
    for key, _ in parts.pairs:
        if b"tokenizer.ggml" in key and b"model" not in key:
            continue
        for value in (string(EVIL), struct.pack("<IIQ", ARRAY, STRING, 1) + string(EVIL)[4:]):
            path.write_bytes(changed(parts, key.decode(), value).encoded())
            said = alignez("model", "show", *option, "--threads", 1)
            assert said.code in (0, 1, 2)
            assert all(line.isprintable() for line in (said.out + said.err).splitlines()), key
            assert "unexpected" not in said.err, said.err


@pytest.mark.parametrize("kind", ["Q8_1", "I8", "I16"])
def test_models_in_formats_without_kernels(seeds: Path, tmp_path: Path, kind: str) -> None:
    """llama.cpp takes them, and ends the process at the first token."""
    parts = parts_of((seeds / BASE).read_bytes())
    number = gguf.GGMLQuantizationType[kind]
    tensors = [replace(t, type=number) if t.name == b"output.weight" else t for t in parts.tensors]
    path = tmp_path / "bad.gguf"
    path.write_bytes(replace(parts, tensors=tuple(tensors)).encoded())
    words = f"tensor output.weight holds {kind} numbers"
    assert words in refused(lambda: read("model", path, seeds))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "\x1b[2Jx", "a/b", "blk.0.ffn_down.weight/.."]
)
def test_adapters_of_matrices_that_are_paths(seeds: Path, tmp_path: Path, name: str) -> None:
    parts = parts_of((seeds / "lora-0").read_bytes())
    a, b, *rest = parts.tensors
    renamed = [
        replace(tensor, name=f"{name}.lora_{side}".encode())
        for tensor, side in ((a, "a"), (b, "b"))
    ]
    path = tmp_path / "bad.gguf"
    path.write_bytes(replace(parts, tensors=(*renamed, *rest)).encoded())
    assert "which the model does not have" in refused(lambda: read("lora", path, seeds))


# --- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'name = "x"\npositive = "a"\nnegative = "{"b" * 300}"', "longer than 200"),
        ('name = "../../x"\npositive = "a"\nnegative = "b"', "cannot be named"),
        ('name = "x"\npositive = "\\u001b[2J"\nnegative = "b"', "one printable line"),
        (f'"{chr(27)}[2J" = 1', "is not TOML"),
        ('"\\u001b[2J" = 1', "unknown key"),
        ("x = " + "9" * 5000, "is not TOML"),
        ("x = " + "[" * 5000, "is not TOML"),
        ("x = " + "{a=" * 5000, "is not TOML"),
        (".".join("a" * (MAX_DOTS + 2)) + " = 1", "dots"),
        ("[[a]]\n" * 1000, "unknown key 'a'"),
        ("#" * (MAX_AXIS + 1), "larger than"),
        ("name = 1979-05-27T07:32:00-25:00", "is not TOML"),
        ("positive = nan\nnegative = inf\nname = 0x7f", "cannot be named"),
    ],
)
def test_axes(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text, "utf-8")
    assert words in refused(lambda: Axis.load(path))


PAIR = '{{"query": "q{0}", "chosen": "a{0}", "rejected": "b"}}'


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([f'{{"query": "{"x" * MAX_LINE}"}}'], f"longer than {MAX_LINE:,} bytes"),
        (["[" * (MAX_LINE - 1)], "not JSON"),
        (['{"a":' * 50_000], "not JSON"),
        ([f'{{"query": {"9" * 10_000}}}'], "not JSON"),
        (['{"query": "\\ud800", "chosen": "a", "rejected": "b"}'], "half a character"),
        (['{"\\u001b[2J": 1}'], "missing"),
        ([PAIR.format(n) for n in range(MAX_PAIRS + 1)], f"more than {MAX_PAIRS:,} pairs"),
    ],
)
def test_pairs(tmp_path: Path, lines: list[str], words: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    assert words in refused(lambda: read_labelled_pairs(path, AXIS))


def test_reasons_of_dropped_pairs_are_few_and_printable(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    records = [{"query": "q", "chosen": "a", "rejected": "b", "dropped": f"{EVIL}{n}"} for n in
               range(500)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    dropped = read_labelled_pairs(path, AXIS).dropped
    assert sum(dropped.values()) == 500 and len(dropped) < 30
    assert all(reason.isprintable() and len(reason) <= 60 for reason in dropped)


def test_queries(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n".join(f"q{n}" for n in range(MAX_QUERIES + 1)), "utf-8")
    assert f"more than {MAX_QUERIES:,} queries" in refused(lambda: read_queries(path))
    assert len(read_queries(path, limit=50)) == 50
    path.write_bytes(b"x" * (MAX_LINE + 1))
    assert f"longer than {MAX_LINE:,} bytes" in refused(lambda: read_queries(path))
    path.write_bytes(b"fine\n\xff\xfe\n")
    assert "is not UTF-8 text: line 2" in refused(lambda: read_queries(path))


@pytest.mark.parametrize("kind", ["axis", "pairs", "queries"])
def test_reading_a_text_takes_memory_for_what_is_there(
    seeds: Path, kind: str, tmp_path: Path
) -> None:
    """Not for what might have been there: the limits are up to a gigabyte."""
    readers: dict[str, Callable[[Path], object]] = {
        "axis": Axis.load,
        "pairs": lambda path: read_labelled_pairs(path, AXIS),
        "queries": read_queries,
    }
    readers[kind](seeds / f"{kind}-0")
    tracemalloc.start()
    try:
        readers[kind](seeds / f"{kind}-0")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()

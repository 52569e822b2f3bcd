"""Mutations of files: bytes in, bytes out, everything drawn from a `random.Random`.

`mutate` takes a valid file apart as far as its format is known (GGUF fields, TOML and JSON tokens)
and puts it together wrongly, or damages it blindly as a bad disk would.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

EXTREMES = (
    0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 255, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
    2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 33, 2**64 - 1,
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "\n", "\r\n", "a\x1b[31mred", "\x9b2J", "\u202eevil", "../../etc/passwd",
    "C:\\x", "/dev/null", "\ufeff", "\U0001f642", "e\u0301", "%s%n", "{0.__class__}",
    "{{ 7 * 7 }}", "nan", "-inf", "NULL", "x" * 70_000, "\u2028", "']", '"', "\\",
)  # fmt: skip
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_FLOATS = (0.0, -0.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))

Mutation = Callable[[Random, bytes], bytes]


def mutate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` after one to three mutations; `others` are files of its kind to splice with."""
    known = _GGUF if data.startswith(b"GGUF") else _TEXT
    for _ in range(rng.choice((1, 1, 2, 3))):
        draw = rng.random()
        if draw < 0.1:
            data = _spliced(rng, data, rng.choice(others))
        elif draw < 0.35:
            data = rng.choice(_BLIND)(rng, data)
        else:
            data = rng.choice(known)(rng, data)
    return data


# --- blind damage -----------------------------------------------------------------------------


def _place(rng: Random, data: bytes) -> int:
    """A position, more often near the beginning, where headers are."""
    span = len(data) if rng.random() < 0.5 else min(len(data), rng.choice((32, 400, 4000)))
    return rng.randrange(span) if span else 0


def _range(rng: Random, data: bytes) -> tuple[int, int]:
    start = _place(rng, data)
    return start, start + rng.choice((1, 2, 4, 8, 16, 200, 4096))


def _flip_bits(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20)) if data else 0):
        changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: Random, data: bytes) -> bytes:
    start, end = _range(rng, data)
    size = len(data[start:end])
    fill = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    return data[:start] + fill + data[end:]


def _cut_end(rng: Random, data: bytes) -> bytes:
    return data[: _place(rng, data)]


def _cut_out(rng: Random, data: bytes) -> bytes:
    start, end = _range(rng, data)
    return data[:start] + data[end:]


def _double(rng: Random, data: bytes) -> bytes:
    start, end = _range(rng, data)
    return data[:end] + data[start:]


def _insert(rng: Random, data: bytes) -> bytes:
    start = _place(rng, data)
    piece = rng.choice((rng.randbytes(8), bytes(32), rng.choice(TEXTS).encode()))
    return data[:start] + piece + data[start:]


def _spliced(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :]


_BLIND: tuple[Mutation, ...] = (_flip_bits, _overwrite, _cut_end, _cut_out, _double, _insert)


# --- GGUF -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    name: bytes
    dims: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Parts:
    """A GGUF file in parts that need not agree; `value` is the type and bytes of a key's value.

    A count of None is the true one.
    """

    version: int
    pairs: tuple[tuple[bytes, bytes], ...]
    tensors: tuple[Tensor, ...]
    data: bytes
    counts: tuple[int | None, int | None] = field(default=(None, None))

    def encoded(self) -> bytes:
        counts = [
            len(own) if count is None else count
            for count, own in zip(self.counts, (self.tensors, self.pairs), strict=True)
        ]
        head = b"GGUF" + struct.pack("<IQQ", self.version, *counts)
        head += b"".join(_string(key) + value for key, value in self.pairs)
        for t in self.tensors:
            dims = struct.pack(f"<I{len(t.dims)}Q", len(t.dims), *t.dims)
            head += _string(t.name) + dims + struct.pack("<IQ", t.type, t.offset)
        return head + bytes(-len(head) % 32) + self.data


def _string(raw: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def parts_of(raw: bytes) -> Parts:
    """The parts of a well-formed file; raises on others."""
    at = 4

    def take(form: str) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return values

    def text() -> bytes:
        nonlocal at
        (length,) = take("Q")
        if length > len(raw) - at:
            raise struct.error
        at += length
        return raw[at - length : at]

    def value() -> bytes:
        nonlocal at
        start = at
        (kind,) = take("I")
        if kind == _STRING:
            text()
        elif kind == _ARRAY:
            of, n = take("IQ")
            if of == _STRING:
                for _ in range(n):
                    text()
            else:
                at += n * _SIZES[of]
        else:
            at += _SIZES[kind]
        return raw[start:at]

    version, n_tensors, n_pairs = take("IQQ")
    pairs = tuple((text(), value()) for _ in range(n_pairs))
    tensors = []
    for _ in range(n_tensors):
        name = text()
        (n,) = take("I")
        dims = take(f"{n}Q") if n <= 8 else ()
        tensors.append(Tensor(name, dims, *take("IQ")))
    return Parts(version, pairs, tuple(tensors), raw[-(-at // 32) * 32 :])


def _structural(change: Callable[[Random, Parts], Parts]) -> Mutation:
    """`change` of the parts, or blind damage where an earlier mutation left no parts."""

    def mutated(rng: Random, data: bytes) -> bytes:
        try:
            parts = parts_of(data)
            if parts.pairs and parts.tensors:
                return change(rng, parts).encoded()
        except (struct.error, KeyError, OverflowError):
            pass
        return rng.choice(_BLIND)(rng, data)

    return mutated


def _value(rng: Random) -> bytes:
    """A value of a random type."""
    kind = rng.choice((*_SIZES, _STRING, _STRING, _ARRAY, _ARRAY, 13))
    if kind == _STRING:
        return struct.pack("<I", kind) + _string(rng.choice(TEXTS).encode())
    if kind == _ARRAY:
        of, n = rng.choice((4, 5, 6, 12, _STRING, _ARRAY, 0)), rng.choice((0, 1, 3, 300))
        body = _string(b"x") * n if of == _STRING else rng.randbytes(n * _SIZES.get(of, 4))
        return struct.pack("<IIQ", kind, of, rng.choice((n, n, *EXTREMES))) + body
    return struct.pack("<I", kind) + _scalar(rng, kind)


def _scalar(rng: Random, kind: int) -> bytes:
    if kind == 6:
        return struct.pack("<f", rng.choice(_FLOATS))
    if kind == 12:
        return struct.pack("<d", rng.choice((*_FLOATS, 1e308, 1e300)))
    return struct.pack("<Q", rng.choice(EXTREMES))[: _SIZES.get(kind, 4)]


def _some_value(rng: Random, parts: Parts) -> Parts:
    at = rng.randrange(len(parts.pairs))
    key, value = parts.pairs[at]
    (kind,) = struct.unpack_from("<I", value)
    draw = rng.random()
    if draw < 0.4 and kind in _SIZES:
        value = value[:4] + _scalar(rng, kind)
    elif draw < 0.4 and kind == _ARRAY:
        value = _some_element(rng, value)
    elif draw < 0.7 and kind in (_STRING, _ARRAY):  # a length that lies
        start = 4 if kind == _STRING else 8
        value = value[:start] + struct.pack("<Q", rng.choice(EXTREMES)) + value[start + 8 :]
    else:
        value = _value(rng)
    return _with_pair(parts, at, (key, value))


def _some_element(rng: Random, value: bytes) -> bytes:
    of, n = struct.unpack_from("<IQ", value, 4)
    if of not in _SIZES or not n:
        return value[:16] + rng.choice(_BLIND)(rng, value[16:])
    size, at = _SIZES[of], rng.randrange(n)
    start = 16 + at * size
    return value[:start] + _scalar(rng, of) + value[start + size :]


def _some_key(rng: Random, parts: Parts) -> Parts:
    at = rng.randrange(len(parts.pairs))
    other = rng.choice(parts.pairs)[0]
    key = rng.choice((other, rng.choice(TEXTS).encode(), parts.pairs[at][0] + b"x"))
    return _with_pair(parts, at, (key, parts.pairs[at][1]))


def _drop_key(rng: Random, parts: Parts) -> Parts:
    at = rng.randrange(len(parts.pairs))
    return replace(parts, pairs=parts.pairs[:at] + parts.pairs[at + 1 :])


def _new_key(rng: Random, parts: Parts) -> Parts:
    known = rng.choice(parts.pairs)[0]
    stem = known.rpartition(b".")[0]
    key = rng.choice((b"general.alignment", stem + b".x", b"split.count", known, b"general.type"))
    return replace(parts, pairs=(*parts.pairs, (key, _value(rng))))


def _swap_values(rng: Random, parts: Parts) -> Parts:
    a, b = rng.randrange(len(parts.pairs)), rng.randrange(len(parts.pairs))
    first = (parts.pairs[a][0], parts.pairs[b][1])
    second = (parts.pairs[b][0], parts.pairs[a][1])
    return _with_pair(_with_pair(parts, a, first), b, second)


def _with_pair(parts: Parts, at: int, pair: tuple[bytes, bytes]) -> Parts:
    return replace(parts, pairs=(*parts.pairs[:at], pair, *parts.pairs[at + 1 :]))


def _some_tensor(rng: Random, parts: Parts) -> Parts:
    at = rng.randrange(len(parts.tensors))
    tensor, other = parts.tensors[at], rng.choice(parts.tensors)
    change = rng.randrange(8)
    if change == 0:
        tensor = replace(tensor, name=rng.choice((other.name, rng.choice(TEXTS).encode())))
    elif change == 1:
        tensor = replace(tensor, type=rng.choice((*range(45), *EXTREMES)) & 0xFFFFFFFF)
    elif change == 2:
        offset = rng.choice((other.offset, tensor.offset + 32, *EXTREMES))
        tensor = replace(tensor, offset=offset % 2**64)
    elif change == 3:
        dims = list(tensor.dims or other.dims or (1,))
        dims[rng.randrange(len(dims))] = rng.choice((*other.dims, *EXTREMES))
        tensor = replace(tensor, dims=tuple(dims))
    elif change == 4:
        tensor = replace(tensor, dims=tensor.dims[::-1])
    elif change == 5:
        tensor = replace(tensor, dims=(*tensor.dims, rng.choice(EXTREMES)) * rng.choice((1, 2)))
    elif change == 6:
        tensor = replace(tensor, dims=other.dims, offset=other.offset)
    else:
        tensor = replace(tensor, dims=tensor.dims[: rng.randrange(4)])
    tensors = (*parts.tensors[:at], tensor, *parts.tensors[at + 1 :])
    return replace(parts, tensors=tensors)


def _drop_tensor(rng: Random, parts: Parts) -> Parts:
    at = rng.randrange(len(parts.tensors))
    return replace(parts, tensors=parts.tensors[:at] + parts.tensors[at + 1 :])


def _double_tensor(rng: Random, parts: Parts) -> Parts:
    tensor = rng.choice(parts.tensors)
    if rng.random() < 0.5:
        tensor = replace(tensor, name=tensor.name[:-1] + rng.choice((b"9", b"x", b"0")))
    return replace(parts, tensors=(*parts.tensors, tensor))


def _counts(rng: Random, parts: Parts) -> Parts:
    counts: list[int | None] = [None, None]
    at = rng.randrange(2)
    true = (len(parts.tensors), len(parts.pairs))[at]
    counts[at] = rng.choice((true - 1, true + 1, *EXTREMES))
    return replace(parts, counts=(counts[0], counts[1]))


def _some_numbers(rng: Random, parts: Parts) -> Parts:
    """Numbers in the tensors' data: what is not finite, zeros, noise."""
    data = bytearray(parts.data)
    if len(data) < 8:
        return parts
    at = rng.randrange(0, len(data) - 7, 4)
    special = (struct.pack("<f", x) for x in _FLOATS)
    piece = rng.choice((*special, b"\x00\x7c\x01\x7c", rng.randbytes(64), bytes(256)))
    data[at : at + len(piece)] = piece
    return replace(parts, data=bytes(data[: len(parts.data)]))


_GGUF: tuple[Mutation, ...] = tuple(
    map(
        _structural,
        (
            _some_value, _some_value, _some_value, _some_key, _drop_key, _new_key, _swap_values,
            _some_tensor, _some_tensor, _drop_tensor, _double_tensor, _counts, _some_numbers,
        ),
    )
)  # fmt: skip


# --- TOML and JSON ----------------------------------------------------------------------------

_TOKEN = re.compile(rb'"""|"(?:[^"\\\n]|\\.)*"|[A-Za-z_][\w-]*|-?\d[\d.eE+-]*|[\s]+|.', re.DOTALL)
_ODD_TOKENS: tuple[bytes, ...] = (
    b"", b"{", b"}", b"[", b"]", b'"', b"'", b'"""', b"\\", b"=", b":", b",", b"\n", b"\r", b"#",
    b"null", b"true", b"nan", b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 5000, b"0x" + b"f" * 40,
    b"1979-05-27T07:32:00-25:00", b"07:32:00", b"[" * 3000, b"{" * 3000, b'{"a":' * 2000,
    b"a." * 300 + b"b", b"[[x]]", b'"\\ud800"', b'"\\u0000"', b'"\\u001b[2J"', b'"\\U0010ffff"',
    b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf0\x9f\x99\x82", b"\x00", b"\x1b[2J",
    b'"' + b"y" * 9000 + b'"', b"\x85", b"\xc2\x85", b"\xe2\x80\xa8", b"[]", b"{}", b'[""]', b"1",
)  # fmt: skip


def _some_token(rng: Random, data: bytes) -> bytes:
    tokens = _TOKEN.findall(data)
    if not tokens:
        return rng.choice(_ODD_TOKENS)
    a, b = rng.randrange(len(tokens)), rng.randrange(len(tokens))
    change = rng.randrange(5)
    if change == 0:
        tokens[a] = rng.choice(_ODD_TOKENS)
    elif change == 1:
        tokens[a], tokens[b] = tokens[b], tokens[a]
    elif change == 2:
        tokens[a] = b""
    elif change == 3:
        tokens[a] = tokens[a] * rng.choice((2, 3, 500))
    else:
        tokens.insert(a, rng.choice(_ODD_TOKENS))
    return b"".join(tokens)


def _some_line(rng: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    change = rng.randrange(4)
    if change == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif change == 1:
        del lines[a]
    elif change == 2:
        lines[a : a + 1] = [lines[a]] * rng.choice((2, 40))
    else:
        lines[a] += rng.choice((b"\r", b" ", b"\t# c", b"\x0c", b","))
    return b"\n".join(lines)


def _other_encoding(rng: Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1")), "replace")


_TEXT: tuple[Mutation, ...] = (_some_token,) * 6 + (_some_line, _some_line, _other_encoding)

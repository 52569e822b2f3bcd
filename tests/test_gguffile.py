"""A GGUF header is either read or refused with one line: never a crash, a hang, or a surprise."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from alignez_edge.errors import ModelFileError, ProfileFileError
from alignez_edge.files.gguf_values import StringArray
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.files.text import printable, printable_name

U32, U64, STRING, ARRAY, FLOAT = 4, 10, 8, 9, 6


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    n = len(shape)
    return text(name) + struct.pack(f"<I{n}QIQ", n, *shape, kind, offset)


def file(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    pairs, tensors = pairs or [], tensors or []
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    body = head + b"".join(pairs) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + data


GOOD = file(
    [
        pair("general.architecture", STRING, text("llama")),
        pair("a.number", U32, struct.pack("<I", 7)),
        pair("a.real", FLOAT, struct.pack("<f", 0.5)),
        pair("words", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("") + text("ü")),
        pair("sizes", ARRAY, struct.pack("<IQ", U32, 2) + struct.pack("<2I", 1, 2)),
    ],
    [tensor("x", (4, 2), 0), tensor("y", (32,), 32, 8)],
    np.arange(8, dtype=np.float32).tobytes() + bytes(34),
)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(raw: bytes) -> Path:
        path = tmp_path / "file.gguf"
        path.write_bytes(raw)
        return path

    return write


Write = Callable[[bytes], Path]


def test_a_good_file_is_read(written: Write) -> None:
    found = read_gguf(written(GOOD))
    assert found.metadata["general.architecture"] == found.architecture == "llama"
    assert found.hparam("block_count") is None and found.hparam("block_count", 0) == 0
    with_layers = replace(found, metadata={**found.metadata, "llama.block_count": 7})
    assert with_layers.hparam("block_count", 0) == 7
    assert found.metadata["a.number"] == 7
    assert found.metadata["a.real"] == 0.5
    assert list(found.metadata["words"]) == ["a", "", "ü"]
    assert found.metadata["words"].encoded(2) == "ü".encode()
    assert found.metadata["words"].all_encoded() == [b"a", b"", "ü".encode()]
    assert found.metadata["sizes"].tolist() == [1, 2]
    assert found.tensors["x"].shape == (4, 2)
    assert found.tensors["x"].elements == 8
    np.testing.assert_array_equal(found.tensor("x"), [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(found.tensor("x", slice(1, 2)), [[4, 5, 6, 7]])
    np.testing.assert_array_equal(found.tensor("y"), np.zeros(32))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "BF16", "F16", "F32"])
def test_tensors_agree_with_the_reference_reader(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    form = gguf.GGMLQuantizationType[kind]
    if kind == "F16":
        raw: np.ndarray = values.astype(np.float16)
    elif kind == "F32":
        raw = values
    else:
        size = gguf.GGML_QUANT_SIZES[form]
        raw = (
            gguf.quants.quantize(values, form)
            if kind in ("Q8_0", "BF16")
            else np.full((6, 256 // size[0] * size[1]), 0x35, np.uint8)
        )
    path = tmp_path / "t.gguf"
    writer = gguf.GGUFWriter(path, "x")
    writer.add_tensor("first", np.ones(3, np.float32))
    writer.add_tensor("t", raw, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.quants.dequantize(gguf.GGUFReader(path).tensors[1].data, form)
    found = read_gguf(path)
    np.testing.assert_array_equal(found.tensor("t"), expected)
    np.testing.assert_array_equal(found.tensor("t", slice(2, 5)), expected[2:5])


HUGE = 2**64 - 1
BAD = {
    "empty": (b"", "is empty"),
    "not gguf": (b"PK\x03\x04" + bytes(50), "not a GGUF file (it begins with 'PK\\x03\\x04')"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "header cut": (GOOD[:20], "the file ends inside the header"),
    "version 1": (file(version=1), "GGUF version 1"),
    "big-endian": (file(version=0x03000000), "big-endian"),
    "many tensors": (file(n_tensors=HUGE), "more than the file can hold"),
    "many keys": (file(n_pairs=HUGE), "more than the file can hold"),
    "long key": (file([struct.pack("<Q", HUGE) + bytes(64)]), "the file ends inside a key"),
    "longer key": (file([text(bytes(65536)) + bytes(8)]), "65536 bytes; at most 65535"),
    "double key": (file([pair("k", U32, bytes(4))] * 2), "'k' is there twice"),
    "key not UTF-8": (file([text(b"\xff\xfe") + struct.pack("<II", U32, 1)]), "not UTF-8"),
    "unknown type": (file([pair("k", 99, bytes(8))]), "unknown type 99"),
    "long string": (file([pair("k", STRING, struct.pack("<Q", HUGE))]), "the file ends inside"),
    "string cut": (
        file([pair("k", STRING, struct.pack("<Q", 300) + b"abc")], data=bytes(200)),
        "the file ends inside the value of 'k'",
    ),
    "long array": (file([pair("k", ARRAY, struct.pack("<IQ", U32, HUGE))]), "the file ends inside"),
    "many strings": (file([pair("k", ARRAY, struct.pack("<IQ", STRING, HUGE))]), "more than fit"),
    "string in array cut": (
        file([pair("k", ARRAY, struct.pack("<IQQ", STRING, 2, HUGE) + bytes(32))]),
        "the file ends inside",
    ),
    "nested array": (file([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "array of arrays"),
    "alignment 0": (file([pair("general.alignment", U32, bytes(4))]), "power of two"),
    "alignment text": (file([pair("general.alignment", STRING, text("32"))]), "power of two"),
    "alignment huge": (file([pair("general.alignment", U32, b"\0\0\0\x80")]), "power of two"),
    "no dimensions": (file(tensors=[tensor("t", (), 0)], data=bytes(64)), "0 dimensions"),
    "five dimensions": (file(tensors=[tensor("t", (1,) * 5, 0)], data=bytes(64)), "5 dimensions"),
    "empty dimension": (file(tensors=[tensor("t", (4, 0), 0)], data=bytes(64)), "impossible shape"),
    "overflow": (file(tensors=[tensor("t", (2**40, 2**40), 0)]), "impossible shape"),
    "wraps to zero": (file(tensors=[tensor("t", (2**32, 2**32), 0)]), "impossible shape"),
    "type": (file(tensors=[tensor("t", (4,), 0, 77)], data=bytes(64)), "unknown type 77"),
    "blocks": (file(tensors=[tensor("t", (33,), 0, 8)], data=bytes(64)), "in blocks of 32"),
    "unaligned": (file(tensors=[tensor("t", (4,), 8)], data=bytes(64)), "not a multiple of 32"),
    "truncated": (
        file(tensors=[tensor("t", (64,), 0)], data=bytes(255)),
        "truncated: tensor 't' ends at byte 320 but the file has 319 bytes",
    ),
    "far offset": (file(tensors=[tensor("t", (1,), 2**63)], data=bytes(64)), "truncated"),
    "overlap": (
        file(tensors=[tensor("a", (16,), 0), tensor("b", (1,), 32)], data=bytes(64)),
        "'a' and 'b' overlap",
    ),
    "double tensor": (
        file(tensors=[tensor("a", (1,), 0), tensor("a", (1,), 32)], data=bytes(64)),
        "'a' is there twice",
    ),
    "long name": (file(tensors=[tensor("n" * 64, (1,), 0)], data=bytes(64)), "at most 63"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_one_line(written: Write, name: str) -> None:
    raw, message = BAD[name]
    with pytest.raises(ModelFileError) as raised:
        read_gguf(written(raw))
    assert message in raised.value.message
    assert raised.value.message.isprintable()


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ProfileFileError, match="no such file"):
        read_gguf(tmp_path / "none.gguf", error=ProfileFileError)
    with pytest.raises(ModelFileError, match="is a folder"):
        read_gguf(tmp_path)
    with pytest.raises(ModelFileError, match="cannot read"):
        read_gguf("/dev/null/x")


def test_every_truncation_is_refused(written: Write) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ModelFileError) as raised:
            read_gguf(written(GOOD[:length]))
        assert raised.value.message.isprintable()


def test_random_mutations_are_read_or_refused(written: Write, tiny_llama: Path) -> None:
    """Bytes overwritten, 64-bit fields replaced by extremes, parts cut out or doubled."""
    rng = np.random.default_rng(0)
    real = tiny_llama.read_bytes()[:24_000]
    extremes = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, HUGE]
    refused = 0
    for i in range(2000):
        raw = bytearray(GOOD if i % 4 else real)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(4, len(raw)))
            match int(rng.integers(4)):
                case 0:
                    raw[at] = int(rng.integers(256))
                case 1:
                    raw[at : at + 8] = struct.pack("<Q", extremes[int(rng.integers(8))])
                case 2:
                    del raw[at : at + int(rng.integers(1, 20))]
                case _:
                    raw[at:at] = raw[max(0, at - 16) : at]
        try:
            found = read_gguf(written(bytes(raw)))
            for name in found.tensors:
                found.tensor(name)
            for value in found.metadata.values():
                if isinstance(value, StringArray):
                    list(value)
        except ModelFileError as error:
            refused += 1
            assert error.message.isprintable()
            assert len(error.message) < 500
    assert refused > 1000


def test_names_are_shown_escaped_and_cut() -> None:
    assert printable_name("a\x1b[31mb\n\u202e") == "a\\x1b[31mb\\n\\u202e"
    assert printable_name(b"\xff\x00") == "\\xff\\x00"
    assert printable_name("é" * 100, 10) == "é" * 9 + "…"
    assert printable_name("日本") == "日本"
    assert printable_name("a\u200db") == "a\\u200db" and printable("a\u200db") == "a\u200db"

"""A few thousand of a night's mutated files, and that the harness sees what it looks for."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import pytest

from alignez_edge.errors import BadInputError
from tests.fuzz import FILE_KINDS, LLAMA_KINDS, Case, Finding, Reader, fuzz, main
from tests.mutations import mutate
from tests.seeds import write_seeds


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


def findings(seeds: Path, kinds: Sequence[str], n: int, **options: object) -> list[Finding]:
    found = fuzz(seeds, 7, tuple(kinds), range(n), **options)  # type: ignore[arg-type]
    results = list(found)
    assert [number for number, _, _ in results] == list(range(n))
    assert options or 0 < sum(accepted for _, accepted, _ in results) < n
    return [finding for _, _, finding in results if finding is not None]


def test_untrusted_files_are_read_or_refused(seeds: Path) -> None:
    assert findings(seeds, FILE_KINDS, 3500) == []


def test_what_passes_the_checks_does_not_end_llama_cpp(seeds: Path) -> None:
    assert findings(seeds, tuple(LLAMA_KINDS), 1000) == []


def test_a_mutation_depends_on_its_seed_alone(seeds: Path) -> None:
    data = (seeds / "profile-0").read_bytes()
    made = [mutate(Random(n), data, [data]) for n in range(50)]
    assert made == [mutate(Random(n), data, [data]) for n in range(50)]
    assert len(set(made)) > 40
    files = {"profile": [data]}
    assert Case("profile", 1, 2).content(files) == Case("profile", 1, 2).content(files)
    assert Case("profile", 1, 2).content(files) != Case("profile", 2, 2).content(files)


def bad_readers(seeds: Path, kinds: Sequence[str]) -> Mapping[str, Reader]:
    """Readers that do everything wrong with what is not as it was."""
    good = {path.read_bytes() for path in seeds.iterdir()}

    def bad(kind: str) -> Reader:
        def read(path: Path) -> None:
            if path.read_bytes() not in good:
                FAULTS[kind](path)

        return read

    return {kind: bad(kind) for kind in kinds}


def _hang(path: Path) -> None:
    while True:
        time.sleep(1)


def _burn(path: Path) -> None:
    end = time.process_time() + 1.2
    while time.process_time() < end:
        pass


def _raise(path: Path) -> None:
    raise ValueError("a fault")


def _two_lines(path: Path) -> None:
    raise BadInputError("a line\nand another")


def _warn(path: Path) -> None:
    warnings.warn("nobody asked", stacklevel=1)


def _hoard(path: Path) -> None:
    bytearray(16 << 20)


def _write_elsewhere(path: Path) -> None:
    (path.parent.parent / "elsewhere").write_bytes(b"")


FAULTS: dict[str, Reader] = {
    "profile": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
    "vector": _raise,
    "lora": _two_lines,
    "model": _hoard,
    "axis": _warn,
    "rules": _raise,
    "pairs": _write_elsewhere,
    "queries": _burn,
}


def test_every_fault_is_found(seeds: Path) -> None:
    found = findings(seeds, FILE_KINDS, len(FILE_KINDS), readers=bad_readers)
    said = {finding.kind: finding.text for finding in found}
    assert said.keys() == set(FILE_KINDS)
    words = {
        "profile": "crash (-11)", "vector": "ValueError", "lora": "unclear", "model": "memory",
        "axis": "UserWarning", "pairs": "touched", "queries": "slow", "rules": "ValueError",
    }  # fmt: skip
    assert all(text.startswith(words[kind]) for kind, text in said.items()), said


def hanging(seeds: Path, kinds: Sequence[str]) -> Mapping[str, Reader]:
    FAULTS["axis"] = _hang
    return bad_readers(seeds, kinds)


def test_a_hang_is_found_and_the_run_goes_on(seeds: Path) -> None:
    found = findings(seeds, ("axis", "lora"), 4, readers=hanging, patience=1.0)
    assert [finding.key for finding in found] == [
        "axis: hang", "lora: unclear", "axis: hang", "lora: unclear",
    ]  # fmt: skip


def test_a_run_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--folder", str(tmp_path), "--kinds", "axis", "queries", "--seed", "3", "--files"]
    assert main([*run, "10"]) == main([*run, "30"]) == main([*run, "30"]) == 0
    first, second, third = (
        line for line in capsys.readouterr().out.splitlines() if "files of" in line
    )
    assert first.startswith("10 files of 2 kinds") and second[:9] == third[:9] == "30 files "

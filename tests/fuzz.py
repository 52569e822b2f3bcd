"""Untrusted files by the thousand: valid ones are damaged, and each is read as the program would.

    python -m tests.fuzz --files 100000 --seed 0

What must hold of each file: it is read, or refused by an `AlignezError` of one clear line; no
crash, at most a second of processor time, at most twice the file's size in memory beside a fixed
cost (`FIXED`), and nothing on the disk is touched but the file. `--kinds loaded applied` hands what
passes the checks to llama.cpp, which ends the process where a check has a hole.

The files are read in a process of their own, so that its end and its silence can be seen. A case
is drawn from (seed, kind, number) alone: every finding can be made again, and a run that was
interrupted goes on where it was. What was found is kept in `.cache/fuzz`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.mutations import mutate

FILE_KINDS = ("profile", "vector", "lora", "model", "axis", "rules", "pairs", "queries")
LLAMA_KINDS = {"loaded": "model", "applied": "lora"}
"""Kinds whose survivors go on to llama.cpp, and the files that they are."""
SECONDS = 1.0
"""Of processor time for one file, tracing of memory included."""
PATIENCE = 20.0
"""Seconds without a word from the reading process, after which it hangs."""
FIXED = 4 << 20
"""Bytes that reading may take whatever the file's size: objects of a header, tables, messages."""
ADDRESS_SPACE = 4 << 30
"""Bytes that the reading process may map; what asks for more gets a `MemoryError`."""
KEPT = 3
"""Files that are kept of each finding; the others are counted."""
_CHANGING = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate",
    "os.chmod", "os.chown", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.utime",
    "subprocess.Popen", "socket.connect", "socket.bind", "shutil.",
)  # fmt: skip

Reader = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One file to be read: the `number`-th of a run with this `seed`."""

    kind: str
    seed: int
    number: int

    def content(self, seeds: Mapping[str, Sequence[bytes]]) -> bytes:
        """Its bytes; `seeds` are the valid files by kind."""
        rng = Random(f"{self.seed} {self.kind} {self.number}")
        files = seeds[LLAMA_KINDS.get(self.kind, self.kind)]
        return mutate(rng, rng.choice(files), files)


@dataclass(frozen=True)
class Finding:
    """What was wrong with a case. `key` is the same for findings of one cause, roughly."""

    kind: str
    number: int
    key: str
    text: str


# --- reading one file -------------------------------------------------------------------------


def _readers(seeds: Path, kinds: Sequence[str]) -> dict[str, Reader]:
    """How the program reads a file of each kind."""
    from alignez_edge.exchange.vectorfile import read_control_vector
    from alignez_edge.files.gguffile import read_gguf
    from alignez_edge.judges.rules import RuleJudge
    from alignez_edge.modelfiles.lora import read_lora
    from alignez_edge.preferences.axes import Axis
    from alignez_edge.preferences.pairs import read_labelled_pairs
    from alignez_edge.preferences.queries import read_queries
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.batch import generate_batch
    from alignez_edge.runtime.check import check_model
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Request, Sampling
    from alignez_edge.runtime.weights import Adapter
    from tests.seeds import BASE

    axis = Axis("x", "a", "b")
    base = read_gguf(seeds / BASE)
    model = Model.load(seeds / BASE, threads=1) if "applied" in kinds else None

    def loaded(path: Path) -> None:
        with Model.load(path, threads=1) as model:
            _ = model.facts, model.fingerprint
            prompt = model.tokenize("Why is it so?", begin=True)
            list(generate_batch(model, [Request(prompt, Sampling(max_tokens=2), 0)]))

    def applied(path: Path) -> None:
        assert model is not None
        Adapter(model, read_lora(path, base).content())

    def vector(path: Path) -> None:
        file = read_control_vector(path)
        file.rows(4, file.n_embd, file.maker or "repeng")

    return {
        "profile": lambda path: _shown(Profile.load(path), path),
        "vector": vector,
        "lora": lambda path: read_lora(path, base).content(),
        "model": lambda path: check_model(read_gguf(path)),
        "axis": Axis.load,
        "rules": RuleJudge.load,
        "pairs": lambda path: read_labelled_pairs(path, axis),
        "queries": read_queries,
        "loaded": loaded,
        "applied": applied,
    }


def _shown(profile: Any, path: Path) -> None:
    """A profile that can be read can be shown as well."""
    from alignez_edge.files.text import is_unprintable
    from cli.profile.cards import card, facts

    json.dumps(facts(profile, path), allow_nan=False)
    odd = {c for c in card(profile, path) if is_unprintable(c)} - {"\n"}
    if odd:
        raise AssertionError(f"the card holds {odd!r}")


class Watch:
    """Reads files, and says what was wrong with each. Its audit hook stays for good, so it belongs
    into a process of its own."""

    def __init__(self, folder: Path, readers: Mapping[str, Reader]) -> None:
        self._folder, self._readers = folder, readers
        self._allowed = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])})
        self._touched: list[str] = []
        self._watching = False
        sys.addaudithook(self._hear)

    def read(self, case: Case, data: bytes) -> tuple[bool, Finding | None]:
        """Write the file and read it: whether it was accepted, and what was wrong."""
        from alignez_edge.errors import AlignezError

        path = self._folder / f"file.{case.kind}"
        path.write_bytes(data)
        self._touched.clear()
        tracing = case.kind in FILE_KINDS
        if tracing:
            tracemalloc.start()
        wrong, accepted = None, False
        self._watching, started = True, time.process_time()
        try:
            self._readers[case.kind](path)
            accepted = True
        except AlignezError as error:
            wrong = _unclear(error.message) or (error.hint and _unclear(error.hint))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            wrong = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {error}"
        self._watching, seconds = False, time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1] if tracing else 0
        tracemalloc.stop()
        if wrong is None and seconds > SECONDS:
            wrong = f"slow: {seconds:.1f} s"
        if wrong is None and peak > 2 * len(data) + FIXED:
            wrong = f"memory: {peak} bytes for a file of {len(data)}"
        if wrong is None and self._touched:
            wrong = f"touched: {self._touched[0]}"
        if wrong is None and (path.read_bytes() != data or len([*self._folder.iterdir()]) > 1):
            wrong = "the folder is not as it was"
        for other in self._folder.iterdir():
            other.unlink()
        if wrong is None:
            return accepted, None
        key = f"{case.kind}: {wrong.split(': ')[0]}"
        return accepted, Finding(case.kind, case.number, key, wrong)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            path, mode, flags = arguments
            writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            place = path if isinstance(path, int) else os.fsdecode(path)
            inside = isinstance(place, int) or place.startswith(
                (str(self._folder), "/sys/", "/proc/") if not writing else "\0"
            )
            lazily = isinstance(place, str) and place.startswith(self._allowed) and not writing
            if not inside and not lazily:
                self._touched.append(f"open {place} ({mode or flags})")
        elif event.startswith(_CHANGING):
            self._touched.append(f"{event} {arguments!r}")


def _unclear(message: str) -> str | None:
    """Why `message` is not one clear line, or None where it is."""
    if not message.strip() or len(message) > 1000:
        return f"unclear: a message of {len(message)} characters"
    if not message.replace("\u200c", "").replace("\u200d", "").isprintable():
        return f"unclear: the message {message!r}"
    return None


# --- the reading process and the one that watches it ------------------------------------------


def _work(
    place: str, seed: int, kinds: tuple[str, ...], numbers: range, pipe: Any, readers: Any
) -> None:
    """Read cases, and say before each its number and after it how it went."""
    warnings.simplefilter("error")  # a warning is a line that nobody asked for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that watches
    os.environ["GGML_NO_BACKTRACE"] = "1"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    seeds = _load(Path(place))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ALIGNEZ_HOME"] = str(Path(folder) / "home")
        os.chdir(folder)
        inner = Path(folder) / "in"
        inner.mkdir()
        watch = Watch(inner, readers(Path(place), kinds))
        for kind in kinds:  # what is loaded lazily is loaded now, and the valid files are valid
            for data in seeds[LLAMA_KINDS.get(kind, kind)]:
                if watch.read(Case(kind, seed, -1), data) != (True, None):
                    raise RuntimeError(f"a valid {kind} is refused")
        for number in numbers:
            case = Case(kinds[number % len(kinds)], seed, number)
            pipe.send(number)
            pipe.send(watch.read(case, case.content(seeds)))


def _load(folder: Path) -> dict[str, list[bytes]]:
    seeds: dict[str, list[bytes]] = {}
    for path in sorted(folder.iterdir()):
        seeds.setdefault(path.name.partition("-")[0], []).append(path.read_bytes())
    return seeds


def fuzz(
    place: Path,
    seed: int,
    kinds: tuple[str, ...],
    numbers: range,
    *,
    patience: float = PATIENCE,
    readers: Callable[[Path, Sequence[str]], Mapping[str, Reader]] = _readers,
) -> Iterator[tuple[int, bool, Finding | None]]:
    """Read the cases `numbers`, from the valid files in `place`: (number, accepted, finding).

    A process that ends or falls silent is a finding, and the next one goes on behind the case.
    """
    context = multiprocessing.get_context("spawn")
    at = numbers.start
    while at < numbers.stop:
        ours, theirs = context.Pipe(duplex=False)
        left = range(at, numbers.stop)
        worker = context.Process(
            target=_work, args=(str(place), seed, kinds, left, theirs, readers), daemon=True
        )
        worker.start()
        theirs.close()
        begun = None
        try:
            while at < numbers.stop:
                # The first word comes after all that has to be loaded.
                if not ours.poll(patience if begun is not None else 10 * patience):
                    raise TimeoutError
                word = ours.recv()
                if begun is None:
                    begun = word
                else:
                    yield begun, *word
                    at, begun = begun + 1, None
        except (EOFError, TimeoutError) as end:
            worker.kill() if isinstance(end, TimeoutError) else None
            worker.join()
            if begun is None:
                raise RuntimeError(f"the reading process cannot begin ({worker.exitcode})") from end
            how = "hang" if isinstance(end, TimeoutError) else f"crash ({worker.exitcode})"
            kind = kinds[begun % len(kinds)]
            yield begun, False, Finding(kind, begun, f"{kind}: {how}", how)
            at = begun + 1
        finally:
            worker.kill()
            worker.join()
            ours.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where anything was found."""
    from cli.output import Progress
    from tests.seeds import write_seeds

    every = (*FILE_KINDS, *LLAMA_KINDS)
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=100_000, help="how many to read")
    parser.add_argument("--seed", type=int, default=0, help="which files these are")
    parser.add_argument("--kinds", nargs="+", default=FILE_KINDS, choices=every)
    parser.add_argument("--folder", type=Path, default=Path(".cache/fuzz"))
    parser.add_argument("--afresh", action="store_true", help="do not go on with an earlier run")
    given = parser.parse_args(arguments)
    kinds = tuple(given.kinds)
    folder: Path = given.folder / f"{'-'.join(kinds)}-{given.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.json"
    done, counts, found, seconds, accepted = 0, {}, [], 0.0, dict.fromkeys(kinds, 0)
    if state.exists() and not given.afresh:
        kept = json.loads(state.read_text("utf-8"))
        done, counts, found = kept["done"], kept["counts"], kept["found"]
        seconds, accepted = kept["seconds"], kept["accepted"]
    begun = time.monotonic() - seconds

    def save() -> None:
        values = {"done": done, "counts": counts, "found": found, "accepted": accepted}
        values["seconds"] = time.monotonic() - begun
        state.with_suffix(".new").write_text(json.dumps(values, indent=1), "utf-8")
        state.with_suffix(".new").replace(state)

    with tempfile.TemporaryDirectory() as temporary, Progress() as progress:
        write_seeds(Path(temporary))
        seeds = _load(Path(temporary))
        try:
            for number, read, finding in fuzz(
                Path(temporary), given.seed, kinds, range(done, given.files)
            ):
                done = number + 1
                accepted[kinds[number % len(kinds)]] += read
                progress("files", done, given.files)
                if finding is not None:
                    counts[finding.key] = counts.get(finding.key, 0) + 1
                    if counts[finding.key] <= KEPT:
                        found.append(asdict(finding))
                        case = Case(finding.kind, given.seed, number)
                        (folder / f"{number}.{finding.kind}").write_bytes(case.content(seeds))
                if finding is not None or done % 500 == 0:
                    save()
        except KeyboardInterrupt:
            print("interrupted: start it again and it goes on where it was", file=sys.stderr)
            return 130
        finally:
            save()
    took = time.monotonic() - begun
    print(f"{done} files of {len(kinds)} kinds in {took:.0f} s, seed {given.seed}")
    print("accepted: " + ", ".join(f"{kind} {n}" for kind, n in accepted.items()))
    for key, count in sorted(counts.items()):
        print(f"{count:6d}  {key}")
    for entry in found:
        print(f"        {folder}/{entry['number']}.{entry['kind']}: {entry['text'][:200]}")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())

"""A build that is killed at any moment and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignez_edge.calibration.free_running import GRID
from tests.terminal import ROOT, process

TOPICS = (
    "bread rain trains cats snow tea maps birds salt glue wool milk iron sand moss rope figs kelp"
).split()
CHUNKS = (16, 2)
"""How `generate.CHUNK` divides these queries."""

N_EACH = 3 + len(GRID)
CALIBRATION = 3 * N_EACH
"""Answers that a calibration here writes: the last of its three questions is a chunk of its own."""

CHILD = """
import os, signal, sys
from alignez_edge.build import choice, generate, steps
from alignez_edge.build.build import build_profile
from alignez_edge.calibration import free_running
from alignez_edge.preferences import answers
from alignez_edge.preferences.axes import Axis
from alignez_edge.runtime import batch
from alignez_edge.runtime.model import Model

path, work, out, doomed, moment, *topics = sys.argv[1:]
left = int(moment)
real = batch.generate_batch
answers.DESCRIPTION_TOKENS = generate.ANSWER_TOKENS = choice.N_TOKENS = 12
free_running.N_TOKENS, free_running.N_QUESTIONS, free_running.CHUNK = 6, 3, 2
steps.CHUNK = 2

def counted(*arguments, **options):
    for completion in real(*arguments, **options):
        os.write(1, b".")
        yield completion

def watch(step, done, total):
    global left
    left -= step == doomed
    if doomed and not left:
        os.kill(os.getpid(), signal.SIGKILL)

batch.generate_batch = counted
with Model.load(path, threads=1) as model:
    axis = Axis("bright", positive="bright", negative="dark")
    queries = [f"Tell me about {topic}." for topic in topics]
    profile = build_profile(model, axis, queries=queries, work=work, on_progress=watch)
    if doomed == "save":
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    profile.save(out)
"""


@dataclass(frozen=True)
class Build:
    """One folder of work and the profile that comes out of it."""

    model: Path
    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def profile(self) -> Path:
        return self.folder / "bright.gguf"

    def kept(self, pattern: str) -> Path:
        """The one file of the work folder that fits a pattern."""
        (path,) = self.work.glob(pattern)
        return path

    def run(self, doomed: str = "", moment: int = 0) -> int:
        """Build, or be killed at the given call of a step; how many texts were generated."""
        arguments = [self.model, self.work, self.profile, doomed, moment, *TOPICS]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        )
        expected = -signal.SIGKILL if doomed else 0
        assert done.returncode == expected, done.stderr.decode()
        return len(done.stdout)


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Build, int]:
    """A build that nobody disturbed, and how many texts it generated."""
    model = tiny_model("llama", n_layer=3)
    build = Build(model, tmp_path_factory.mktemp("undisturbed"))
    return build, build.run()


@pytest.mark.parametrize(
    ("step", "moments"),
    [
        ("request", (1, 50)),
        ("pairs", (1, 20, 32, 3)),  # in the first chunk, at its end, in the second, ...
        ("embeddings", (1, 3)),
        ("subspace", (2,)),
        ("calibration", (1, 3)),
    ],
)
def test_a_killed_build_goes_on(
    undisturbed: tuple[Build, int], tmp_path: Path, step: str, moments: tuple[int, ...]
) -> None:
    whole, n_whole = undisturbed
    build = Build(whole.model, tmp_path)
    for moment in moments:
        before = lines(build.work / "pairs.jsonl")
        n_generated = build.run(step, moment)
        assert lines(build.work / "pairs.jsonl")[: len(before)] == before
        if len(before) > 1:
            n_finished = len(before) - 1  # the first line is no pair
            most = 4 * (len(TOPICS) - n_finished) + CALIBRATION
            assert n_generated <= most, "made a finished pair again"
    n_last = build.run()
    if step == "request":
        assert n_last == n_whole
    else:
        assert n_last >= CALIBRATION - 2 * N_EACH * (step == "calibration")
        assert (n_last > CALIBRATION) == (step == "pairs"), "all pairs were finished before"
        assert n_last < n_whole
    assert build.profile.read_bytes() == whole.profile.read_bytes()


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


@pytest.mark.parametrize("pattern", ["pairs.jsonl", "states-*.f32", "calibration-*.jsonl"])
@pytest.mark.parametrize("torn", [1, 40])
def test_a_torn_end_is_made_again(
    undisturbed: tuple[Build, int], tmp_path: Path, pattern: str, torn: int
) -> None:
    whole, _ = undisturbed
    build = Build(whole.model, tmp_path)
    shutil.copytree(whole.work, build.work)
    path = build.kept(pattern)
    os.truncate(path, path.stat().st_size - torn)
    n_generated = build.run()
    most = N_EACH if pattern.startswith("calibration") else 4 * CHUNKS[-1] + CALIBRATION
    assert n_generated <= most, "only the chunk of the torn line is made again"
    assert build.profile.read_bytes() == whole.profile.read_bytes()
    assert path.read_bytes() == whole.kept(pattern).read_bytes()


def test_a_kill_while_saving_leaves_the_old_profile(
    undisturbed: tuple[Build, int], tmp_path: Path
) -> None:
    whole, _ = undisturbed
    build = Build(whole.model, tmp_path)
    shutil.copytree(whole.work, build.work)
    build.profile.write_bytes(b"the old one")
    assert build.run("save", 1) == 0
    assert build.profile.read_bytes() == b"the old one"
    assert build.run() == 0
    assert build.profile.read_bytes() == whole.profile.read_bytes()


def test_ctrl_c_is_one_line_and_the_build_goes_on(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    queries = tmp_path / "queries.txt"
    queries.write_text("\n".join(f"Tell me about {topic}." for topic in TOPICS), "utf-8")
    out = tmp_path / "bright.gguf"
    command = ["build", "bright", "--positive", "bright", "--negative", "dark", "-o", out, "--json"]
    command += ["-m", tiny_model("llama", n_layer=3), "--threads", 1, "--queries", queries]
    running = process(*command)
    while running.poll() is None and not list(tmp_path.rglob("pairs.jsonl")):
        time.sleep(0.02)
    (kept,) = tmp_path.rglob("pairs.jsonl")
    while running.poll() is None and len(lines(kept)) <= CHUNKS[0]:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    said, complaint = running.communicate()
    assert (running.returncode, said) == (130, b""), complaint.decode()
    told = [line for line in complaint.decode().splitlines() if not line.startswith("  ")]
    assert told == ["interrupted: start the same build again and it goes on where it was"]
    assert not out.exists()
    before = lines(kept)
    again = process(*command, "--quiet")
    said, complaint = again.communicate()
    assert (again.returncode, complaint) == (0, b"")
    assert said.count(b"\n") == 1 and out.is_file()
    assert lines(kept)[: len(before)] == before

"""Killed at any moment while saving, or out of disk: the old file is whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alignez_edge.errors import BadInputError
from alignez_edge.files.reading import is_there
from alignez_edge.files.writing import check_apart, write_atomic
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from tests.seeds import all_profiles
from tests.terminal import ROOT

TEMPORARY = re.compile(r"\.polite\.gguf\.[0-9a-f]{12}\.alignez")

# Begun once; every save is made by a child of its own, which is killed.
CHILD = """
import json, os, random, resource, signal, sys, time
from alignez_edge.errors import AlignezError
from alignez_edge.profile import Profile

job, old, new, out, *rest = json.loads(sys.stdin.read())
profiles = [Profile.load(old), Profile.load(new)]
contents = {open(path, "rb").read() for path in (old, new)}
profiles[1].save(out)  # what is imported late is imported now
profiles[0].save(out)
rng = random.Random(7)

def in_child(work, wait=None):
    pid = os.fork()
    if not pid:
        try:
            work()
        except AlignezError as error:
            print(error.message, flush=True)
            os._exit(3)
        finally:
            os._exit(0)
    if wait is not None:
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert open(out, "rb").read() in contents, "the file is neither the old one nor the new one"
    return os.waitstatus_to_exitcode(status)

def at_line(n):
    # SIGKILL at the n-th line that Python runs while saving
    left = n
    def step(frame, event, argument):
        nonlocal left
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return step
    sys.settrace(step)
    profiles[1].save(out)
    sys.settrace(None)

def for_ever():
    while True:
        for profile in profiles:
            profile.save(out)

def limited(n):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    profiles[1].save(out)

found = []
if job == "lines":
    n, code = 1, -9
    while code == -9:
        profiles[0].save(out)
        code = in_child(lambda: at_line(n))
        found.append([n, open(out, "rb").read() == open(new, "rb").read()])
        n += rng.randrange(1, 24 + n // 10)
elif job == "clock":
    found = [in_child(for_ever, rng.random() / 20) for _ in range(rest[0])]
else:
    found = [in_child(lambda: limited(n)) for n in rest[0]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def pair(llama_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two profile files with everything in them, the second larger."""
    folder = tmp_path_factory.mktemp("pair")
    plain, *_, near, _ = all_profiles(llama_model)
    plain.save(folder / "old")
    near.save(folder / "new")
    return folder / "old", folder / "new"


def saving(pair: tuple[Path, Path], out: Path, job: str, *rest: Any) -> tuple[list[str], list[Any]]:
    """What the saving processes said, and what came of them."""
    given = json.dumps([job, *map(str, pair), str(out), *rest])
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=given, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *said, found = done.stdout.splitlines()
    return said, json.loads(found)


def test_killed_at_any_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "polite.gguf"
    _, found = saving(pair, out, "lines")
    assert len(found) > 20
    assert found[0][1] is False and found[-1][1] is True
    # Once the new file is there it stays: there is one moment at which it takes the name.
    switched = [is_new for _, is_new in found]
    assert switched == sorted(switched)
    assert all(TEMPORARY.fullmatch(path.name) for path in tmp_path.iterdir() if path != out)


def test_killed_by_the_clock(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "polite.gguf"
    _, codes = saving(pair, out, "clock", 30)
    assert codes == [-9] * 30
    Profile.load(out)


def test_no_room_for_the_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "polite.gguf"
    size = pair[1].stat().st_size
    limits = [0, 1, 24, 4096, size // 2, *range(size - 1, size - 4096, -509)]
    said, codes = saving(pair, out, "limit", limits)
    assert codes == [3] * len(limits)
    assert len(said) == len(limits) and all("cannot write" in line for line in said)
    assert out.read_bytes() == pair[0].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["polite.gguf"]


def test_a_full_disk(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A file system that is as good as full, where one may be made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
import os
from alignez_edge.errors import AlignezError
from alignez_edge.profile import Profile
old, new, disk = {str(pair[0])!r}, {str(pair[1])!r}, {str(disk)!r}
Profile.load(old).save(disk + "/polite.gguf")
free = os.statvfs(disk)
with open(disk + "/ballast", "wb") as file:
    file.write(bytes(max(free.f_bavail * free.f_frsize - 4096, 0)))
try:
    Profile.load(new).save(disk + "/polite.gguf")
except AlignezError as error:
    print(error.message)
assert open(disk + "/polite.gguf", "rb").read() == open(old, "rb").read()
print(sorted(os.listdir(disk)))
"""
    mount = f"mount -t tmpfs -o size=256k none '{disk}' && exec '{sys.executable}' -c \"$0\""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("nothing here can make a small disk")
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", mount, script], cwd=ROOT, capture_output=True, text=True
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("this user may not make a small disk")
    assert done.returncode == 0, done.stderr
    said, names = done.stdout.splitlines()
    assert "cannot write" in said and "No space left on device" in said
    assert names == "['ballast', 'polite.gguf']"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    assert not is_there(tmp_path / name)
    with pytest.raises(BadInputError, match="cannot write"):
        write_atomic(tmp_path / name, b"")
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_not_to_be_written(tmp_path: Path) -> None:
    source, link = tmp_path / "source", tmp_path / "link"
    check_apart(source, [source])  # neither is there
    source.touch()
    link.symlink_to(source)
    check_apart(tmp_path / "other", [source])
    for target in (source, link, tmp_path / "x" / ".." / "source"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(BadInputError, match="it is the file that is read"):
            check_apart(target, [tmp_path / "none", source])


def test_what_a_kill_leaves_goes_with_a_later_save(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out, profile = tmp_path / "polite.gguf", Profile.load(pair[0])
    ours, other, young = (
        tmp_path / f".{name}.gguf.{digits}.alignez"
        for name, digits in (("polite", "0" * 12), ("rude", "a1" * 6), ("polite", "b2" * 6))
    )
    unlike = [tmp_path / ".polite.gguf.x.alignez", tmp_path / f"polite.gguf.{'0' * 12}.alignez"]
    for path in (ours, other, young, *unlike):
        path.write_bytes(b"half a file")
        if path != young:  # which another program may be writing just now
            os.utime(path, (time.time() - 7200,) * 2)
    profile.save(out)
    assert sorted(tmp_path.iterdir()) == sorted([out, young, *unlike])

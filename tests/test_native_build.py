"""Compiled kernels: what is cached, what of it is trusted, what a build leaves."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from lopax._core import cache, native_build
from lopax._core.errors import ConfigError
from lopax._core.native_build import NativeUnavailable, Source

COMPILER = "cc"
CODE = "int answer(void) { return 42; }\n"
POISON = """#include <stdio.h>
__attribute__((constructor)) static void run(void) {{ fclose(fopen("{}", "w")); }}
int answer(void) {{ return 13; }}
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A cache and a folder for temporary files of the test's own."""
    try:
        native_build.compiler("CC", (COMPILER,))
    except NativeUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("LOPAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LOPAX_KERNELS", raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(native_build, "_known", {})
    yield tmp_path
    assert not list((tmp_path / "tmp").iterdir()), "temporary files are left behind"
    hidden = [p for p in tmp_path.rglob("*.tmp") if p.name.startswith(".")]
    assert not hidden


def wrapper(place: Path, text: str) -> str:
    """A compiler in a folder with a space in its name, which notes its calls."""
    program = place / "my compilers" / "cc"
    program.parent.mkdir(exist_ok=True)
    log = place / "calls"
    program.write_text(f"#!/bin/sh\necho >> '{log}'\n{text}\n")
    program.chmod(0o755)
    return str(program)


def calls(place: Path) -> int:
    log = place / "calls"
    return log.read_text().count("\n") if log.exists() else 0


def source(place: Path, code: str = CODE, compiler: str | None = None) -> Source:
    file = place / "answer.c"
    file.write_text(code)
    program = compiler or wrapper(place, f'exec {COMPILER} "$@"')
    command = (program, "-shared", "-fPIC")
    return Source("answer", (file,), command, symbols=("answer",))


def answer(wanted: Source) -> int:
    """As a new process would find it."""
    native_build.forget()
    return native_build.load(wanted).answer()


def library(place: Path) -> Path:
    (found,) = (place / "cache" / "native").glob("*.so")
    return found


def compiled(place: Path, code: str) -> bytes:
    file, out = place / "other.c", place / "other.so"
    file.write_text(code)
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", str(file), "-o", str(out)], check=True
    )
    return out.read_bytes()


def plant(target: Path, data: bytes) -> None:
    """Puts a library with its right sum in the place of another."""
    target.write_bytes(data)
    total = hashlib.sha256(data).hexdigest()
    target.with_name(f"{target.name}.sha256").write_text(total)


def test_a_library_is_compiled_once_and_only_for_this_user(place):
    wanted = source(place)
    before = os.umask(0)
    try:
        assert [answer(wanted) for _ in range(3)] == [42, 42, 42]
    finally:
        os.umask(before)
    assert calls(place) == 1
    folder = place / "cache" / "native"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        assert not file.stat().st_mode & 0o022
    # Another text, header, option or processor is another library.
    keys = {wanted.key(), wanted._replace(depends=("x",)).key()}
    keys.add(wanted._replace(command=(*wanted.command, "-O1")).key())
    other = source(place, CODE + "\n")
    assert len(keys | {other.key()}) == 4
    assert answer(other) == 42
    assert calls(place) == 2


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "poisoned", "no sum", "empty sum"]
)
def test_what_is_not_what_was_written_is_compiled_again(place, damage):
    wanted, marker = source(place), place / "constructor-ran"
    assert answer(wanted) == 42
    found = library(place)
    total = found.with_name(f"{found.name}.sha256")
    whole = found.read_bytes()
    # By renaming: the old file may be mapped into this process.
    fresh = place / "fresh"
    if damage in ("truncated", "empty"):
        fresh.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"")
        fresh.replace(found)
    elif damage == "poisoned":
        fresh.write_bytes(compiled(place, POISON.format(marker)))
        fresh.replace(found)
    elif damage == "no sum":
        total.unlink()
    else:
        total.write_text("")
    assert answer(wanted) == 42
    assert calls(place) == 2
    assert not marker.exists()
    assert hashlib.sha256(found.read_bytes()).hexdigest() in total.read_text()
    assert answer(wanted) == 42
    assert calls(place) == 2


@pytest.mark.parametrize("code", [None, "int question(void) { return 6; }\n"])
def test_what_is_no_library_or_another_is_compiled_again(place, code):
    """Even with the right sum beside it."""
    wanted = source(place)
    folder = place / "cache" / "native"
    folder.mkdir(parents=True, mode=0o700)
    data = b"no library at all" if code is None else compiled(place, code)
    plant(folder / f"{wanted.key()}.so", data)
    assert answer(wanted) == 42
    assert library(place).read_bytes() != data


@pytest.mark.parametrize("how", ["open folder", "open file", "owner", "file's owner"])
def test_what_others_can_write_to_is_not_loaded(place, how):
    if "owner" in how and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    wanted, marker = source(place), place / "constructor-ran"
    folder = place / "cache" / "native"
    folder.mkdir(parents=True, mode=0o700)
    planted = folder / f"{wanted.key()}.so"
    plant(planted, compiled(place, POISON.format(marker)))
    if how == "open folder":
        folder.chmod(0o777)
    elif how == "open file":
        planted.chmod(0o666)
    else:
        os.chown(folder if how == "owner" else planted, 54321, 54321)
    if how in ("open folder", "owner"):
        with pytest.warns(RuntimeWarning, match="LOPAX_CACHE_DIR"):
            assert answer(wanted) == 42
        assert sorted(p.suffix for p in folder.iterdir()) == [".sha256", ".so"]
    else:  # the folder is ours: the right library takes the place
        assert answer(wanted) == 42
        assert answer(wanted) == 42
        assert calls(place) == 1
    assert not marker.exists()


def test_a_link_in_the_place_of_the_folder_or_a_file_is_not_followed(place):
    wanted, marker = source(place), place / "constructor-ran"
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    plant(elsewhere / f"{wanted.key()}.so", compiled(place, POISON.format(marker)))
    (place / "cache").mkdir()
    (place / "cache" / "native").symlink_to(elsewhere)
    with pytest.warns(RuntimeWarning, match="is a link"):
        assert answer(wanted) == 42
    (place / "cache" / "native").unlink()
    (place / "cache" / "native").mkdir(mode=0o700)
    linked = place / "cache" / "native" / f"{wanted.key()}.so"
    linked.symlink_to(elsewhere / linked.name)
    assert answer(wanted) == 42
    assert not linked.is_symlink()
    assert not marker.exists()


def test_a_pipe_in_the_place_of_a_file_does_not_hang(place):
    wanted = source(place)
    folder = place / "cache" / "native"
    folder.mkdir(parents=True, mode=0o700)
    os.mkfifo(folder / f"{wanted.key()}.so")
    os.mkfifo(folder / f"{wanted.key()}.so.sha256")
    assert answer(wanted) == 42
    assert library(place).is_file()


def test_without_a_folder_to_write_to_it_is_compiled_in_every_process(place):
    (place / "cache").write_text("a file in the place of the folder")
    wanted = source(place)
    assert [answer(wanted) for _ in range(2)] == [42, 42]
    assert calls(place) == 2


def test_a_read_only_cache_is_used_as_it_is(place):
    """A library that root made for all; the compiler is gone."""
    wanted = source(place)
    assert answer(wanted) == 42
    folder = place / "cache" / "native"
    Path(wanted.command[0]).unlink()
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    assert answer(wanted) == 42
    if os.geteuid() == 0:
        for parent in (place, *place.parents):
            if not parent.stat().st_mode & 0o005:
                return  # another user could not come here
        program = (
            f"import os, sys\nos.setuid(54321)\nsys.path[:0] = {sys.path!r}\n"
            "from pathlib import Path\n"
            "from lopax._core import native_build as n\n"
            f"s = n.Source('answer', (Path({str(wanted.files[0])!r}),), "
            f"{wanted.command!r}, symbols=('answer',))\n"
            "print(n.load(s).answer())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout == "42\n"


def test_a_compiler_that_hangs_is_ended_with_its_children(place, monkeypatch):
    monkeypatch.setattr(native_build, "TIMEOUT", 1.0)
    pid = place / "pid"
    slow = wrapper(place, f"sleep 600 & echo $! > '{pid}'\nwait")
    with pytest.raises(NativeUnavailable, match="took over 1 s"):
        answer(source(place, compiler=slow))
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid.read_text().strip()}/stat")
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("the compiler's child is still running")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("exit 0", "wrote no library"),
        (
            f'{COMPILER} "$@"; for f; do case $f in *.so) : > "$f";; esac; done',
            "wrote no",
        ),
        ("echo 'error: no luck' >&2; exit 3", "no luck"),
        ("kill -9 $$", "failed"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing_and_is_asked_once(place, text, told):
    wanted = source(place, compiler=wrapper(place, text))
    for _ in range(2):
        with pytest.raises(NativeUnavailable, match=told):
            native_build.load(wanted)
    assert calls(place) == 1
    assert not list((place / "cache").rglob("*.so*"))


def test_a_library_without_the_functions_is_refused_and_not_kept(place):
    with pytest.raises(NativeUnavailable, match="no function answer"):
        answer(source(place, "int question(void) { return 6; }\n"))
    assert not list((place / "cache").rglob("*.so*"))


def test_the_compiler_may_be_a_command_line(place, monkeypatch):
    program = wrapper(place, f'exec {COMPILER} "$@"')
    monkeypatch.setenv("CC", f'"{program}" -DANSWER="4 + 3"')
    command = native_build.compiler("CC", (COMPILER,))
    assert command == [program, "-DANSWER=4 + 3"]
    wanted = source(place, "int answer(void) { return ANSWER; }\n")
    wanted = wanted._replace(command=(*command, "-shared", "-fPIC"))
    assert answer(wanted) == 7
    for bad, told in (
        ('cc "', "command line"),
        ("/no/compiler -O2", "no such program"),
    ):
        monkeypatch.setenv("CC", bad)
        with pytest.raises(NativeUnavailable, match=told):
            native_build.compiler("CC", (COMPILER,))
    for off in ("off", " OFF", "0", "false", "no"):
        monkeypatch.setenv("LOPAX_KERNELS", off)
        with pytest.raises(NativeUnavailable, match="LOPAX_KERNELS"):
            native_build.compiler("CC", (COMPILER,))
    monkeypatch.setenv("LOPAX_KERNELS", "of")
    with pytest.raises(ConfigError, match="LOPAX_KERNELS = 'of'"):
        native_build.compiler("CC", (COMPILER,))


def test_what_killed_builds_left_is_removed(place):
    wanted = source(place)
    folder = place / "cache" / "native"
    folder.mkdir(parents=True, mode=0o700)
    old = (place / "tmp" / "lopax-build-old", folder / ".answer.so.x.tmp")
    old[0].mkdir()
    (old[0] / "answer.so").write_text("half")
    old[1].write_text("half")
    for path in old:
        os.utime(path, (0, 0))
    other = place / "tmp" / ".somebody-else.tmp"
    other.write_text("")
    os.utime(other, (0, 0))
    assert answer(wanted) == 42
    assert not any(path.exists() for path in old)
    other.unlink()  # raises if it was removed


def test_builds_at_once_are_safe(place):
    wanted = source(place, compiler=wrapper(place, f'sleep 0.3; exec {COMPILER} "$@"'))
    program = (
        f"import sys\nsys.path[:0] = {sys.path!r}\nfrom pathlib import Path\n"
        "from lopax._core import native_build as n\n"
        f"s = n.Source('answer', (Path({str(wanted.files[0])!r}),), "
        f"{wanted.command!r}, symbols=('answer',))\n"
        "print(n.load(s).answer())"
    )
    environment = {**os.environ, "TMPDIR": str(place / "tmp")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for _ in range(3)
    ]
    assert [p.communicate(timeout=60)[0] for p in running] == ["42\n"] * 3
    built = calls(place)
    assert answer(wanted) == 42
    assert calls(place) == built


def test_no_home_directory_is_needed(place, monkeypatch):
    def nobody(*args: Any) -> Any:
        raise KeyError("uid not found")

    import pwd

    for name in ("HOME", "XDG_CACHE_HOME", "LOPAX_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    folder = cache.cache_dir()
    assert folder == place / "tmp" / f"lopax-{os.getuid()}"
    assert answer(source(place)) == 42
    assert stat.S_IMODE((folder / "native").stat().st_mode) == 0o700
    import shutil

    shutil.rmtree(folder)
    monkeypatch.setenv("LOPAX_CACHE_DIR", "relative")
    assert cache.cache_dir() == Path.cwd() / "relative"
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.delenv("LOPAX_CACHE_DIR")
    if sys.platform == "linux":
        assert cache.cache_dir() == place / "lopax"


def test_neither_jax_nor_torch_is_imported():
    program = (
        f"import sys\nsys.path[:0] = {sys.path!r}\nimport lopax._core.native_build\n"
        "print({'jax', 'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"

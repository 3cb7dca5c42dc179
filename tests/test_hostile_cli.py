"""The command line under attack: one line with the cause and the right exit code."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from evaluate_study import fake_study
from hostile_cases import BAD_COMMANDS, bad_folder

from lopax.cli.main import main
from lopax.evaluate import summarise
from lopax.evaluate.report import pages as report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bad_folder(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("argv", BAD_COMMANDS, ids=" ".join)
def test_bad_input_is_said_in_one_message(folder, monkeypatch, capsys, argv):
    monkeypatch.chdir(folder)
    before = set(folder.rglob("*"))
    try:
        code = main(argv)
    except SystemExit as stop:  # of the parser
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.err.strip()
    assert "Traceback" not in captured.err
    assert "not foreseen" not in captured.err
    new = set(folder.rglob("*")) - before
    assert not [p for p in new if "__pycache__" not in p.parts]


def test_a_users_error_names_its_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["compare", "raises_loss.py"]) == 2
    assert "raises_loss.py, line 3: KeyError: 'my loss'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(28, "No space left on device", "x.bin"), 1, "x.bin: No space left"),
        (PermissionError(13, "Permission denied", "x.bin"), 2, "x.bin: Permission"),
        (MemoryError(), 1, "out of memory"),
        (BrokenPipeError(32, "Broken pipe"), 2, "Broken pipe"),
        (ZeroDivisionError("division by zero"), 1, "traceback is in"),
    ],
)
def test_any_exception_is_one_message(monkeypatch, capsys, error, code, says):
    from lopax.cli import listing

    def fail(argv):
        raise error

    monkeypatch.setattr(listing, "main", fail)
    assert main(["list", "tasks"]) == code
    captured = capsys.readouterr().err
    assert says in captured
    assert len(captured.splitlines()) == 1
    assert main(["list", "tasks", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_out_of_memory_in_a_compiled_program_is_told(capsys, monkeypatch):
    import jax

    from lopax.cli import listing

    def fail(argv):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    monkeypatch.setattr(listing, "main", fail)
    assert main(["list", "tasks"]) == 1
    assert "out of memory" in capsys.readouterr().err


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell command with `lopax` as the command line."""
    return subprocess.run(
        ["bash", "-c", command.replace("lopax ", f"{sys.executable} -m lopax ")],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_standard_output_is_said():
    done = shell("lopax list baselines > /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("lopax: cannot write the output")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        "lopax list baselines >&-",
        "lopax list nonsense 2>&-",
        "set -o pipefail; lopax list baselines | head -1",
        "lopax list baselines <&- >&- 2>&-",
    ],
)
def test_closed_streams_and_gone_readers_are_quiet(command):
    done = shell(command)
    assert done.returncode == (2 if "nonsense" in command else 0)
    assert done.stderr == ""


def test_an_ascii_terminal_gets_question_marks():
    done = shell("lopax list optimizers; lopax list µ", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "?" in done.stderr


def test_progress_that_cannot_be_shown_stops_nothing():
    from lopax.cli.stdio import Patient

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

        def flush(self):
            self.write("")

    patient = Patient(Full())
    print("x", file=patient)  # type: ignore[arg-type]
    patient.flush()
    assert not patient.isatty()


def test_labels_are_not_mathematics_markdown_or_html():
    study = fake_study(tasks=2)
    name, task = "$x^{", "a|b<i>*c*$$"
    optimizers = (
        dataclasses.replace(study.optimizers[0], name=name),
        *study.optimizers[1:],
    )
    problems = (dataclasses.replace(study.problems[0], name=task), study.problems[1])
    renamed = {"celo": name, "task_0": task}
    groups = {
        (renamed.get(o, o), renamed.get(t, t)): cell
        for (o, t), cell in study.groups.items()
    }
    study = dataclasses.replace(
        study, optimizers=optimizers, problems=problems, groups=groups
    )
    summary = summarise(study, "adam")
    page = report.render_html(summary)
    assert name in page
    assert "<i>" not in page
    text = report.render_markdown(summary, command="lopax compare '<x>|'")
    assert r"a\|b\<i>\*c\*\$\$" in text
    assert "    lopax compare '<x>|'" in text  # a code block


def test_tables_as_json_lines(capsys):
    assert main(["list", "weights", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"celo", "celo2"} <= {row["name"] for row in rows}
    assert main(["list", "weights"]) == 0
    assert capsys.readouterr().out.startswith("name\t")


@pytest.mark.parametrize("where", ["finaliser", "collector", "import"])
def test_ctrl_c_is_not_lost_where_python_ignores_exceptions(where, monkeypatch, capsys):
    """Nor raised where it would end in a crash: while jaxlib is imported."""
    from lopax.cli import listing

    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def _xla_gc_callback(phase, info):  # as JAX calls it
        gc.callbacks.remove(_xla_gc_callback)
        signal.raise_signal(signal.SIGINT)

    def work(argv):
        if where == "finaliser":
            Finalised()
        elif where == "import":
            text = "import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True"
            module: dict[str, Any] = {"__name__": "jaxlib.imported"}
            exec(text, module)
            imported.append(module["whole"])
        else:
            gc.callbacks.append(_xla_gc_callback)
            gc.collect()
        time.sleep(20)
        return 0

    imported: list[bool] = []
    monkeypatch.setattr(listing, "main", work)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["list", "tasks"]) == 130
        assert imported == [True] * (where == "import")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    told = capsys.readouterr().err
    assert "interrupted" in told and "Traceback" not in told


WAITS = """
import ctypes, signal, sys
from lopax.cli import interrupts, listing, main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs

def work(argv):
    print("waits", file=sys.stderr, flush=True)
    lock = ctypes.create_string_buffer(128)
    for _ in range(2):  # for ever; no signal ends this
        ctypes.CDLL(None).pthread_mutex_lock(lock)

interrupts.GRACE = 0.2
listing.main = work
sys.argv = ["lopax", "list", "tasks"]
main.entry_point()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a lock of zeros is glibc's")
def test_ctrl_c_ends_a_command_that_waits_for_a_compiler():
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waits\n"
        time.sleep(1.0)  # until it does
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=30)
        finally:
            process.kill()
    assert told == "\ninterrupted\n"
    assert process.returncode == 130


def test_a_program_that_calls_a_command_keeps_its_handler(monkeypatch):
    from lopax.cli import listing

    def mine(number, frame):
        del number, frame

    before = signal.signal(signal.SIGINT, mine)
    try:
        monkeypatch.setattr(
            listing, "main", lambda _: int(signal.getsignal(signal.SIGINT) is not mine)
        )
        assert main(["list", "tasks"]) == 0
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)

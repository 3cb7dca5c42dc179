"""The command line on a terminal, in a pipe, and in the hands of a shell."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import recipe

from lopax.cli.completion import SCRIPTS, commands
from lopax.cli.main import COMMANDS, main

LOPAX = f"{sys.executable} -m lopax"
ESCAPE = "\x1b"


def on_terminal(command: str) -> tuple[str, int]:
    """What bash shows of `command` on a terminal of its own, and its exit code."""
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {command}"],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(inner)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # closed by its last writer
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    return shown.decode(), process.wait()


def test_progress_is_live_on_a_terminal_and_plain_lines_through_tee(tmp_path):
    start = f"{LOPAX} train {recipe(tmp_path)} --out {tmp_path}"
    shown, code = on_terminal(f"{start}/live")
    assert code == 0 and ESCAPE in shown
    log = tmp_path / "log"
    shown, code = on_terminal(f"{start}/piped 2>&1 | tee {log}")
    text = log.read_text()
    assert code == 0 and ESCAPE not in text + shown
    assert "\r" not in text
    assert "rule 4/4" in text and "weights: " in text


def test_quiet_shows_no_progress_and_json_nothing_but_objects(tmp_path, capsys):
    run = ["train", str(recipe(tmp_path)), "--out", str(tmp_path / "run")]
    assert main([*run, "--quiet", "--json"]) == 0
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    assert Path(json.loads(line)["weights"]).exists()
    (line,) = shown.err.splitlines()  # what it came to, no progress
    assert line.startswith("4 outer steps")


def test_tables_on_a_terminal_and_in_a_pipe():
    table, code = on_terminal(f"{LOPAX} list weights; {LOPAX} list weights | cat")
    drawn, piped = table.split("name\tarchitecture", 1)
    assert code == 0 and "celo2" in drawn and ESCAPE in drawn
    assert "celo2\tcelo2" in piped and ESCAPE not in piped


def test_doctor_as_json_lines(capsys):
    assert main(["doctor", "--no-check", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"lopax", "python", "devices"} <= {row["name"] for row in rows}


@pytest.mark.parametrize("args", [["bench", "--help"], ["bench", "--nonsense"]])
def test_help_and_usage_errors_have_no_control_codes_in_a_pipe(args, capsys):
    with pytest.raises(SystemExit):
        main(args)
    shown = capsys.readouterr()
    assert shown.out + shown.err and ESCAPE not in shown.out + shown.err


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    found = commands()
    assert list(found) == list(COMMANDS)
    for shell, make in SCRIPTS.items():
        (folder / shell).write_text(make(found))
    return folder


ASK = {
    "bash": "source {script}; COMP_WORDS=({words} '{last}'); "
    "COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _lopax; echo ${{COMPREPLY[@]}}",
    "zsh": "source {script}; COMP_WORDS=({words} '{last}'); setopt ksharrays; "
    "COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _lopax; echo ${{COMPREPLY[@]}}",
    "fish": "source {script}; complete -C '{words} {last}' | cut -f 1",
}


@pytest.mark.parametrize("shell", ASK)
@pytest.mark.parametrize(
    "words, last, expected",
    [
        ("lopax", "be", {"bench"}),
        ("lopax list", "ta", {"tasks"}),
        ("lopax bench", "lit", {"lite"}),
        ("lopax explain", "celo_", {"celo_adam"}),
        ("lopax bench lite", "--see", {"--seeds"}),
        ("lopax bench lite --optimizers", "muon_", {"muon_constant"}),
        ("lopax convert a b --to", "hub", {"hub-folder"}),
    ],
)
def test_a_shell_completes(shell, words, last, expected, scripts):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    ask = ASK[shell].format(script=scripts / shell, words=words, last=last)
    clean = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    found = subprocess.run(
        [shell, *clean, "-c", ask], capture_output=True, text=True, timeout=60
    )
    offered = set(found.stdout.split())
    # zsh itself leaves out what does not begin with the word.
    assert (expected <= offered) if shell == "zsh" else (offered == expected), found


def test_tcsh_takes_the_script_and_knows_every_command(scripts):
    text = (scripts / "tcsh").read_text()
    assert all(f"'n/{name}/" in text for name in ("bench", "list", "explain"))
    if shutil.which("tcsh") is None:
        pytest.skip("tcsh is not installed")
    found = subprocess.run(
        ["tcsh", "-f", "-c", f"source {scripts / 'tcsh'}; complete lopax"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0 and "p/1/(quickstart" in found.stdout, found

"""What C, Triton and Python must agree on: channels, constants, structs.

`header()` is the text of `tables.h`, written by `python -m lopax.native.tables`; a test
says whether it is current. Neither framework is imported.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from lopax.rules import channels
from lopax.rules.channels import COL, ELEMENT, GROUPS, ROW, TERMS, VELO
from lopax.rules.element_net import NUM_DECAYS, SIZE_EPS, ElementNet

HEADER = Path(__file__).with_name("tables.h")
INPUTS = channels.count(VELO)

_POINTERS = ("grad", "param", "momenta", "second", "row", "col", "out")
_NETWORK = ("w0", "b0", "w1", "b1", "w2", "b2", "decays")
_INTEGERS = (
    *("a", "x", "b", "y", "c", "row_over_x", "vector"),
    *("n", "band", "items", "first", "add", "guard", "unreached"),
)
_FLOATS = ("scale", "least", "most", "lr", "decay")
READ_ONLY = ("grad", *_NETWORK, "rule")
TENSOR = np.dtype(
    [
        *((name, np.uintp) for name in (*_POINTERS, *_NETWORK, "scratch", "rule")),
        *((name, np.int64) for name in _INTEGERS),
        *((name, np.float32) for name in _FLOATS),
    ],
    align=True,
)
"""A tensor in one step. The five sizes are those of `Blocks`; a vector is X alone, its
factored moments are `row`. `n`, `band` and `items` are what `elements_prepare` makes of
them, `first` is the core's own. `unreached` is what a step found: whether an element
never saw a gradient other than zero; -1 if nobody asks. `out` may be `param`; with
`add` it is the new parameter, else the update `lr (step - decay param)`; with `guard`
what is not finite stays, or is zero. `decays`: of the momenta, the factored moments,
the second moment."""

RULE_FLOATS = ("exp_mult", "limit", "second_eps", "channel_eps", "vector_eps")
RULE_FLAGS = ("outputs", "per_matrix", "by_size", "hold")
RULE = np.dtype(
    [
        ("slots", np.int32, (INPUTS,)),
        *((name, np.int32) for name in RULE_FLAGS),
        *((name, np.float32) for name in RULE_FLOATS),
    ],
    align=True,
)
"""An `ElementNet` for tensors of one rank. `slots`: for each of the 30 channels, which
row of w0 it has, or -1. `limit` is the bound of gradients."""


def element_places() -> tuple[int, ...]:
    """Which of the 30 channels have a value per element, in order."""
    return channels.places([n for n in VELO if GROUPS[n].over == ELEMENT])


def line_places(over: str) -> tuple[int, ...]:
    """Which have one per row (or column): the moments, then their inverse roots."""
    return channels.places([n for n in VELO if GROUPS[n].over == over])


def formulas() -> tuple[str, ...]:
    """The channels with a value per element, each the product of terms."""
    found = []
    for group in (GROUPS[n] for n in VELO if GROUPS[n].over == ELEMENT):
        for k in range(group.width):
            names = [t if TERMS[t][0] == 1 else f"{t}{k}" for t in group.terms]
            found.append(" * ".join(names))
    return tuple(found)


def rule(net: ElementNet, rank: int, limit: float) -> Any:
    """The struct `Rule` [1] for tensors of this rank."""
    found = np.zeros(1, RULE)
    found["slots"] = -1
    found["slots"][0, list(channels.places(net.seen(rank)))] = net.rows(rank)
    found["outputs"], found["per_matrix"] = net.outputs, net.per_matrix
    found["by_size"], found["hold"] = net.bounds is not None, net.hold_unreached
    found["exp_mult"], found["limit"] = net.exp_mult, limit
    for name, value in net.epsilons._asdict().items():
        found[f"{name}_eps"] = value
    return found


def header() -> str:
    """The text of `tables.h`."""
    elements = element_places()
    param = elements.index(channels.places(["param"])[0])
    lines = [
        "/* Made by `python -m lopax.native.tables`; do not edit. */",
        "",
        "#pragma once",
        "#include <stdint.h>",
        "",
        f"#define INPUTS {INPUTS}",
        f"#define ELEMENTS {len(elements)} /* with a value per element */",
        f"#define LINES {len(line_places(ROW))} /* with one per row, or per column */",
        f"#define DECAYS {NUM_DECAYS}",
        f"#define PARAM {param} /* among the elements */",
        f"#define CLIP {channels.CLIP}f",
        f"#define LINE_EPS {channels.LINE_EPS}f",
        f"#define SIZE_EPS {SIZE_EPS}",
        "",
        *_array("PLACE", "ELEMENTS", elements),
        *_array("ROW_PLACE", "LINES", line_places(ROW)),
        *_array("COL_PLACE", "LINES", line_places(COL)),
        "",
        *_macro(
            "EACH_CHANNEL(USE)",
            [f"USE({i}, {formula})" for i, formula in enumerate(formulas())],
        ),
        "",
        *_struct("Rule", RULE),
        "",
        *_struct("Tensor", TENSOR),
        "",
        "typedef void (*Work)(void *job, int64_t unit);",
        "/* Runs units 0..count-1, each once, in any order and thread. */",
        "typedef void (*Parallel)(void *pool, int64_t count, Work work, void *job);",
        "",
    ]
    return "\n".join(lines)


def _array(name: str, size: str, values: tuple[int, ...]) -> list[str]:
    text = f"static const int {name}[{size}] = {{{', '.join(map(str, values))}}};"
    return _wrapped(text.split(" "), "", "    ")


def _macro(name: str, words: list[str]) -> list[str]:
    lines = [f"#define {name}", *_wrapped(words, "  ", "  ")]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _listed(words: list[str], end: str = "") -> list[str]:
    return [f"{w}," for w in words[:-1]] + [words[-1] + end]


def _wrapped(words: list[str], first: str, indent: str) -> list[str]:
    lines = [first]
    for word in words:
        if len(lines[-1]) + len(word) > 80:
            lines.append(indent)
        glue = "" if lines[-1] in (first, indent) else " "
        lines[-1] += glue + word
    return lines


def _struct(name: str, dtype: Any) -> list[str]:
    kinds = {np.dtype(np.int64): "int64_t", np.dtype(np.int32): "int32_t"}
    lines = ["typedef struct {"]
    fields = [(n, dtype.fields[n][0]) for n in dtype.names]

    def kind(field: tuple[str, Any]) -> str:
        name, of = field
        if of == np.dtype(np.uintp):
            if name == "rule":
                return "const struct Rule *"
            return "const float *" if name in READ_ONLY else "float *"
        return kinds.get(of.base, "float") + " "

    for what, group in itertools.groupby(fields, kind):
        star = "*" if what.endswith("*") else ""
        names = [
            f"{star}{n}" + (f"[{d.shape[0]}]" if d.shape else "") for n, d in group
        ]
        first = f"  {what.rstrip('*')}"
        lines += _wrapped(_listed(names, ";"), first, "      ")
    lines[0] = f"typedef struct {name} {{"
    return [*lines, f"}} {name};"]


if __name__ == "__main__":
    HEADER.write_text(header())

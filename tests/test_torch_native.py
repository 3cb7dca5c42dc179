"""The C core: its tables are current, and who uses it or does not is told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch_common import make, needs_compiler, random_theta

import lopax.torch
from lopax.architectures import ARCHITECTURES, architecture
from lopax.native import coverage, tables
from lopax.native.blocks import Blocks
from lopax.rules import channels
from lopax.rules.element_net import ElementNet
from lopax.torch.geometry import place_of


def test_the_header_is_current():
    assert tables.HEADER.read_text() == tables.header(), (
        "run python -m lopax.native.tables"
    )


def test_every_channel_has_one_place():
    elements = tables.element_places()
    lines = tables.line_places(channels.ROW) + tables.line_places(channels.COL)
    assert sorted(elements + lines) == list(range(tables.INPUTS))
    assert len(tables.formulas()) == len(elements) == 18


def test_what_the_core_is_told_of_a_network():
    net = ElementNet(8, outputs=1, vector_channels=channels.CELO2_VECTOR)
    vector, matrix = (tables.rule(net, rank, 1000.0)[0] for rank in (1, 2))
    assert list(vector["slots"]) == [*range(15), *[-1] * 15]
    assert list(matrix["slots"]) == list(range(30))
    adafac = tables.rule(ElementNet(4, channels=channels.ADAFAC), 2, 1e9)[0]
    kept = [s for s in adafac["slots"] if s >= 0]
    assert kept == list(range(28)) and adafac["slots"][1] == adafac["slots"][14] == -1


def test_neither_framework_is_imported():
    code = (
        "import sys; from lopax.native import blocks, coverage, library, tables\n"
        "print({'jax', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_what_is_not_covered_has_a_reason():
    matrices = ElementNet(8, per_matrix=True)
    assert coverage.not_covered(ElementNet(4)) is None
    assert "hidden <= 64, not 100" in str(coverage.not_covered(ElementNet(100)))
    assert "outputs, not 3" in str(coverage.not_covered(ElementNet(4, outputs=3)))

    def told(net, shape, layout="out_in"):
        return coverage.tensor_not_covered(net, place_of(shape, layout))

    assert told(ElementNet(4), (64, 3, 7, 7)) is None
    assert told(matrices, (64, 32, 3, 3)) is None
    assert told(matrices, (3, 3, 32, 64), "in_out") is None
    assert "two largest axes" in str(told(matrices, (64, 3, 7, 7)))
    wide = told(matrices, (64, 32, 12, 12))
    assert "144 matrices side by side" in str(wide)


def test_the_triton_kernels_compute_the_table():
    """Their text is compared: the kernels themselves need Triton."""
    folder = Path(lopax.torch.__file__).parent
    text = (folder / "celo_triton.py").read_text()
    names = {"grad": "g", "clipped_grad": f"clip(g, {channels.CLIP})"}
    names |= {"param": "p", "second": "s", "rsqrt": "q"}
    for k in range(3):
        names |= {f"momenta{k}": f"m{k}", f"factor{k}": f"g{k}"}
        names[f"momenta_factor{k}"] = f"f{k}"
    for i, formula in enumerate(tables.formulas()):
        written = " * ".join(names[term] for term in formula.split(" * "))
        assert f"weights, {i}, {written})" in text, formula
        value = "c" if "clip" in written else written
        value = f"({value})" if " " in value else value
        assert f"a{i} += {value} * {value}" in text, formula
    text = (folder / "triton_tables.py").read_text()
    fields = re.findall(r'^    "(\w+)"', text, re.MULTILINE)
    assert re.findall(r"^    AT_(\w+),", text, re.MULTILINE) == [
        name.upper() for name in fields
    ]


def test_info_tells_the_backend_and_the_reason(monkeypatch):
    needs_compiler()

    def told(name: str, **options) -> str:
        params = [torch.nn.Parameter(torch.ones(64, 3, 7, 7)), torch.ones(5)]
        params[1] = torch.nn.Parameter(params[1])
        options["theta"] = random_theta(
            name, **{k: v for k, v in options.items() if k != "backend"}
        )
        optimizer = make(name, params, **options)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step(loss=1.0)
        return optimizer.info().backends["cpu"]

    assert told("celo") == "fused"
    assert told("celo", backend="plain") == "plain: it was asked for"
    assert "no fused CPU kernel for 'celo_adam'" in told("celo_adam")
    assert re.fullmatch(r"plain: .*hidden <= 64, not 70.*", told("celo", hidden=70))
    told_of = told("celo2_base", convolutions="slices")
    assert re.fullmatch(r"fused; plain where .*\[64, 3, 7, 7\].*matrices", told_of)
    assert "plain where role 'adam' has no element network" in told("celo2")
    monkeypatch.setenv("LOPAX_KERNELS", "off")
    assert "LOPAX_KERNELS is off" in told("celo")


def test_blocks_are_whatever_the_axes_come_to():
    assert Blocks.of((4, 7), (0, 1))[:5] == (1, 4, 1, 7, 1)
    assert Blocks.of((3, 3, 4, 8), (2, 3))[:5] == (9, 4, 1, 8, 1)
    assert Blocks.of((8, 4, 3, 3), (1, 0))[:5] == (1, 8, 1, 4, 9)
    assert Blocks.of((5,), None)[:5] == (1, 5, 1, 1, 1)


@pytest.mark.parametrize("name", ARCHITECTURES.names("*"))
def test_every_description_makes_sense(name):
    net = getattr(getattr(architecture(name), "config", None), "element_net", None)
    if net is not None:
        assert net.checked() is net

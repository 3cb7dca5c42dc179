"""The description of element networks, which imports neither framework."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lopax._core.errors import ConfigError
from lopax.rules import channels
from lopax.rules.element_net import ElementNet


def test_neither_framework_is_imported():
    code = (
        "import sys; from lopax.rules import channels, element_net\n"
        "print({'jax', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_published_order_and_number_of_channels():
    assert channels.count(channels.VELO) == 30
    assert channels.count(channels.ADAFAC) == 28
    assert channels.count(channels.CELO2_VECTOR) == 15
    assert channels.places(channels.VELO) == tuple(range(30))
    assert channels.places(["row", "col_rsqrt"]) == (15, 16, 17, 24, 25, 26)
    assert channels.places(["adam"], channels.ADAFAC) == (6, 7, 8)
    for group in channels.GROUPS.values():
        widths = [channels.TERMS[term][0] for term in group.terms]
        assert group.width == max(widths), group


def test_what_vectors_see():
    net = ElementNet(8, vector_channels=channels.CELO2_VECTOR)
    assert net.seen(1) == channels.CELO2_VECTOR and net.rows(1) == tuple(range(15))
    assert net.seen(2) == channels.VELO and net.rows(3) == tuple(range(30))
    assert net.shapes()["w0"] == (30, 8) and net.shapes(41)["w0"] == (41, 8)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"channels": ("grad", "loss")}, "'loss' is no group"),
        (
            {"channels": ("grad",), "vector_channels": ("param",)},
            "'param' is not among",
        ),
        ({"exp_mult": 0.1, "outputs": 1}, "magnitude is a second output"),
        ({"hidden": 0}, "hidden = 0"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        ElementNet(**{"hidden": 4, **settings}).checked()

"""Attacks that the hostile tests and `benchmarks/hostile.py` share."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lopax._core.errors import LopaxError
from lopax.theta import load_theta


def mutants(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damaged copies of a file, none equal to it: flipped bits (half of them in the
    first tenth, where headers and names are), overwritten, removed, inserted and
    repeated stretches, cut ends."""
    rng = random.Random(seed)
    while count:
        at = rng.randrange(len(data) if rng.random() < 0.5 else len(data) // 10 + 1)
        size = min(rng.choice((1, 4, 64, 1024)), len(data) - at)
        kind = rng.choice(("bit", "bit", "write", "remove", "insert", "repeat", "cut"))
        damaged = bytearray(data)
        if kind == "bit":
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == "write":
            damaged[at : at + size] = rng.randbytes(size)
        elif kind == "remove":
            del damaged[at : at + size]
        elif kind == "insert":
            damaged[at:at] = rng.randbytes(size)
        elif kind == "repeat":
            damaged[at:at] = data[at : at + size]
        else:
            del damaged[at:]
        if damaged != data:
            count -= 1
            yield f"{kind} at {at}", bytes(damaged)


def with_header(data: bytes, text: str) -> bytes:
    """A lopax file with another text as its header."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["lopax"] = text
    new = json.dumps(header).encode()
    new += b" " * (-len(new) % 8)
    return struct.pack("<Q", len(new)) + new + data[8 + size :]


def header_of(data: bytes) -> dict[str, Any]:
    """The header of a lopax file."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["lopax"])


def loaded(path: Path, original: Any) -> str:
    """What `load_theta` makes of a damaged file: "refused", "same", "values" (other
    numbers in the same tree), "other" (another tree), or the exception that leaked."""
    try:
        theta = load_theta(path)
    except LopaxError:
        return "refused"
    except Exception as error:
        return f"leaked {type(error).__name__}"
    if jax.tree.structure(theta) != jax.tree.structure(original):
        return "other"
    equal = jax.tree.map(np.array_equal, theta, original)
    return "same" if all(jax.tree.leaves(equal)) else "values"


RECIPE = """
name = "tiny"
architecture = "learned_sgd"
log_every = 2
eval_every = 0
eval_tasks = []
[[tasks]]
datasets = ["digits"]
settings = { hidden = [4], batch_size = 8 }
[estimator]
particles = 4
truncation = 4
horizon_low = 4
horizon_high = 8
chunk = 4
[[phases]]
outer_steps = STEPS
"""

PROBLEM = """
import jax, jax.numpy as jnp
def init(key): return {"w": jnp.ones(3)}
def loss(params): return jnp.sum(params["w"] ** 2)
"""

_FILES: dict[str, str | bytes] = {
    "tiny.toml": RECIPE.replace("STEPS", "4"),
    "zero_size.toml": RECIPE.replace("hidden = [4]", "size = 0").replace("STEPS", "4"),
    "bytes.toml": b"\xff\xfe",
    "afile": "x",
    "asdir/config.json/x": "",
    "jl/config.json": "[1, 2]",
    "jn/config.json": '{"name": 3}',
    "jb/config.json": b"\xff\xfe",
    "jd/config.json": "[" * 100_000,
    "jm/config.json": "{}",
    "jm/metrics.jsonl": b"\xff\n{}\n",
    "jc/config.json": "{}",
    "jc/checkpoint.safetensors": b"\x00" * 100,
    "tc/comparison.json": "[" * 100_000,
    "td/comparison.json": "[]",
    "fine.py": PROBLEM,
    "raises_init.py": PROBLEM.replace("return {", "raise RuntimeError; return {"),
    "raises_loss.py": (
        "def init(key): return {'w': __import__('jax').numpy.ones(3)}\n"
        "def loss(params):\n    raise KeyError('my loss')\n"
    ),
    "raises.py": "1 / 0\n",
    "exits.py": "raise SystemExit(0)\n",
    "exits_in_loss.py": PROBLEM.replace("return jnp.sum", "exit(0); return jnp.sum"),
    "syntax.py": "def init(\n",
    "bytes.py": b"\xff\xfe",
    "empty.py": "",
}


def bad_folder(folder: Path) -> Path:
    """Fills a folder with what `BAD_COMMANDS` use."""
    for name, content in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(data)
    return folder


_LONG = "x" * 300
BAD_COMMANDS = [
    line.split()
    for line in f"""
nonsense
train asdir
train bytes.toml
train afile
train nowhere.toml
train zero_size.toml
train {_LONG}
train tiny.toml --out afile
train tiny.toml --out afile/x
train tiny.toml --out /proc/x
train tiny.toml --out {_LONG}
train tiny.toml --devices 0
train tiny.toml --devices -1
train tiny.toml --devices 1000
train tiny.toml --seed 100000000000000000000
train tiny.toml --outer.learning-rate inf
train tiny.toml --outer.learning-rate nan
train tiny.toml --estimator.sigma nan
train tiny.toml --estimator.particles 0
train tiny.toml --log-every 0
train tiny.toml --track nonsense
train tiny.toml --name ../x
train tiny.toml --coordinator x
train --resume afile
train --resume asdir
train --resume nowhere
train --resume jl
train --resume jn
train --resume jb
train --resume jd
train --resume jc
report afile
report asdir
report nowhere
report jl
report jm
report tc
report td
compare raises_init.py
compare raises_loss.py
compare raises.py
compare exits.py
compare exits_in_loss.py
compare syntax.py
compare bytes.py
compare empty.py
compare asdir
compare nowhere.py
compare fine.py --num-steps 0
compare fine.py --num-steps 99999999999
compare fine.py --seeds 0
compare fine.py --seeds -1
compare fine.py --workers 0
compare fine.py --out afile
compare fine.py --optimizers adam@inf
compare fine.py --optimizers adam@nan
compare fine.py --optimizers celo@inf
compare fine.py --optimizers celo:afile
compare fine.py --optimizers a/b=adam
compare fine.py --reference nonsense
bench nonsense
bench smoke --num-steps 0
bench smoke --lanes 0
bench smoke --seeds 0
tune adam fine.py --num-steps 0
tune adam fine.py --seeds 0
tune celo fine.py
tune adam nowhere.py
quickstart --outer-steps 0
quickstart --seeds 0
quickstart --num-steps 0
quickstart --out afile
explain celo --num-steps 0
explain celo --seeds 0
explain asdir/
explain nowhere.safetensors
reproduce star --share 0
reproduce star --share nan
reproduce star --share inf
reproduce star --meta-seeds 0
reproduce nonsense
list
list tasks a b
list tasks --nonsense
convert celo {_LONG}.safetensors
convert celo /proc/x.safetensors
convert celo afile/x.safetensors
convert celo x.txt
convert afile x.safetensors
convert jc/checkpoint.safetensors x.safetensors
convert celo afile --to algoperf
data fetch nonsense
data nonsense mnist
doctor extra
""".strip().splitlines()
]
"""Command lines that must end with exit code 2, one message and no new file."""

"""`lopax doctor`: is this installation sound?"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from lopax._version import __version__
from lopax.cli import flags, stdio

ABOUT = "Print versions, devices and folders, and run a self-check of a few seconds."
PACKAGES = (
    "jax",
    "jaxlib",
    "optax",
    "numpy",
    "safetensors",
    "flax",
    "scikit-learn",
    "matplotlib",
    "torch",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorFlags:
    check: bool = True
    """Run the self-check."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(DoctorFlags, argv, "doctor", ABOUT)
    for name, value in facts().items():
        _line(name, value)
    if not args.check:
        return 0
    failed = 0
    for name, check in CHECKS.items():
        started = time.monotonic()
        problem = check()
        failed += problem is not None
        mark = "ok" if problem is None else f"FAILED: {problem}"
        _line(f"check {name}", f"{mark} ({time.monotonic() - started:.1f} s)")
    return 1 if failed else 0


def _line(name: str, value: str) -> None:
    """A line of what was found; with --json an object."""
    if stdio.JSON.get():
        print(json.dumps({"name": name, "value": value}))
    else:
        print(f"{name:<16} {value}")


def facts() -> dict[str, str]:
    """Versions, devices and folders."""
    import jax

    from lopax._core.cache import cache_dir
    from lopax.data import available, data_dir, list_datasets
    from lopax.inventory import optimizer_facts
    from lopax.native import xla
    from lopax.pretrained import list_weights

    found = {"lopax": __version__, "python": sys.version.split()[0]}
    found["platform"] = platform.platform()
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["devices"] = ", ".join(str(d) for d in jax.devices())
    found["C compiler"] = shlex.join(_c_compiler()) or "none"
    found["C++ compiler"] = shlex.join(xla.compiler() or []) or "none"
    found["kernel in JAX"] = _used(xla.why_not(4))
    found["kernel in torch"] = _used(_torch_why_not())
    found["kernel rules"] = _kernel_rules()
    found["kernel folder"] = str(cache_dir() / "native")
    found["data folder"] = str(data_dir())
    found["data sets here"] = ", ".join(n for n in list_datasets() if available(n))
    found["weights"] = ", ".join(list_weights()) or "none"
    all_facts = optimizer_facts()
    found["state B/param"] = ", ".join(
        f"{f.name} {f.bytes_per_parameter:.0f}" for f in all_facts
    )
    found["bf16 momenta"] = ", ".join(
        f"{f.name} {f.narrow_bytes_per_parameter:.0f}"
        for f in all_facts
        if f.narrow_bytes_per_parameter is not None
    )
    return found


def _used(why_not: str | None) -> str:
    return "fused" if why_not is None else f"the plain rules are used: {why_not}"


def _c_compiler() -> list[str]:
    from lopax._core.native_build import NativeUnavailable
    from lopax.native import library

    try:
        return library.compiler()
    except NativeUnavailable:
        return []


def _kernel_rules() -> str:
    """The rules with an element network, and why the kernel does not step some."""
    from lopax.architectures import ARCHITECTURES, architecture
    from lopax.native.coverage import not_covered

    told = []
    for name in ARCHITECTURES.names("*"):
        config = getattr(architecture(name), "config", None)
        net = getattr(config, "element_net", None)
        if net is not None:
            has_backend = hasattr(config, "backend")
            reason = not_covered(net) if has_backend else "it steps by itself"
            told.append(name if reason is None else f"{name} ({reason})")
    return ", ".join(told)


def _torch_why_not() -> str | None:
    """Why the kernels for torch on the CPU are not used; None if they are."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"no torch ({error})"
    from lopax._core.native_build import NativeUnavailable
    from lopax.native import library

    try:
        library.load(4)
    except NativeUnavailable as error:
        return str(error)
    return None


def _trains() -> str | None:
    """Every bundled optimizer lowers a quadratic's loss."""
    import jax
    import jax.numpy as jnp
    import optax

    from lopax.optax import optimizer
    from lopax.pretrained import list_weights, read_weights

    def loss_fn(x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(x - 1.0))

    for name in list_weights():
        rule = optimizer(
            read_weights(name).header["architecture"], weights=name, num_steps=100
        )

        def body(carry: tuple, _: None, rule: optax.GradientTransformation = rule):
            x, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(x)
            updates, state = rule.update(grads, state, x, value=loss)  # type: ignore[call-arg]
            return (optax.apply_updates(x, updates), state), loss

        x = jax.random.normal(jax.random.key(0), (16, 16))
        losses = jax.lax.scan(body, (x, rule.init(x)), None, length=100)[1]
        if not float(losses[-1]) < float(losses[0]):
            return f"{name} went from {losses[0]:.3g} to {losses[-1]:.3g}"
    return None


def _kernel_agrees() -> str | None:
    """The fused kernel gives the plain rule's numbers."""
    import jax
    import jax.numpy as jnp

    from lopax.architectures import architecture
    from lopax.native import xla

    if xla.why_not(4):
        return None
    params = {"w": jax.random.normal(jax.random.key(0), (24, 40)), "b": jnp.ones(7)}
    results = []
    for backend in ("plain", "fused"):
        rule = architecture("celo", backend=backend)
        theta = rule.init_theta(jax.random.key(1))
        state = rule.init(theta, params, 10)
        updates, _, _ = jax.jit(rule.update)(theta, params, state, params, value=1.0)
        results.append(updates)
    worst = jax.tree.map(
        lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a)), *results
    )
    found = max(float(x) for x in jax.tree.leaves(worst))
    return None if found < 1e-4 else f"relative difference {found:.1e}"


CHECKS: dict[str, Callable[[], str | None]] = {
    "optimizers": _trains,
    "kernel": _kernel_agrees,
}

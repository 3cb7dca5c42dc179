"""The baselines as they are used, each against an independent formula or optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from lopax import evaluate
from lopax._core.errors import ConfigError, UnknownName
from lopax.evaluate import baselines
from lopax.evaluate.baselines import averages, muon, roles, soap
from lopax.evaluate.refs import optimizer_spec, optimizer_specs

SHAPES = {
    "conv0": {"w": (3, 3, 2, 4), "b": (4,)},
    "embedding": (7, 3),
    "layer2": {"w": (4, 6)},
    "layer10": {"w": (6, 5)},
    "stack": (2, 3, 4),
}


def draw(seed: int, shapes: Any = SHAPES) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def follow(optimizer: Any, steps: int = 5, shapes: Any = SHAPES) -> list[Any]:
    """The updates that a fixed sequence of gradients leads to."""
    params = draw(100, shapes)
    state, made = optimizer.init(params), []
    step = jax.jit(optax.with_extra_args_support(optimizer).update)
    for t in range(steps):
        updates, state = step(draw(t, shapes), state, params, value=jnp.float32(1.0))
        params = optax.apply_updates(params, updates)
        made.append(updates)
    return made


def alike(a: Any, b: Any, rtol: float = 2e-4) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b
    )


def test_schedules_rise_fall_and_end_where_they_say():
    peak, n = 0.5, 100
    for name in baselines.SCHEDULES:
        rate = baselines.schedule_of(n, peak, name, warmup=0.1, cooldown=0.2)
        values = np.asarray([rate(t) for t in range(n)])
        np.testing.assert_allclose(values[:10], peak * np.arange(1, 11) / 10, rtol=1e-6)
        assert values.max() == pytest.approx(peak)
        assert np.all(np.diff(values[10:]) <= 1e-7)
    ends = {
        name: float(np.asarray(baselines.schedule_of(n, peak, name, 0.1)(n - 1)))
        for name in baselines.SCHEDULES
    }
    assert ends["constant"] == peak
    assert ends["linear"] == pytest.approx(peak / 90)
    assert ends["wsd"] == pytest.approx(peak / 20)
    assert ends["cosine"] == pytest.approx(peak * np.sin(np.pi / 180) ** 2, rel=1e-3)
    stable: Any = baselines.schedule_of(n, peak, "wsd", 0.1)
    assert float(stable(80)) == pytest.approx(peak)
    assert float(stable(90)) == pytest.approx(peak / 2)


def test_roles_by_name_and_rank():
    found = roles.roles_of(draw(0))
    assert found == {
        "conv0": {"w": "convolutions", "b": "vectors"},
        "embedding": "embeddings",
        "layer2": {"w": "matrices"},
        "layer10": {"w": "output"},  # 10 is behind 2
        "stack": "matrices",
    }
    named = {"head": {"w": (3, 4)}, "position": (5, 3), "up": {"w": (3, 3)}}
    assert roles.roles_of(draw(0, named)) == {
        "head": {"w": "output"},
        "position": "embeddings",
        "up": {"w": "matrices"},
    }
    assert roles.roles_of(jnp.ones(3)) == "vectors"
    assert roles.roles_of({"scale": jnp.ones((1, 1, 1, 8))}) == {"scale": "vectors"}


def test_axes_of_attention_s_projections():
    assert roles.axes_of("block0/query/w", 3) == ((0,), (1, 2))
    assert roles.axes_of("block0/out/w", 3) == ((0, 1), (2,))
    assert roles.axes_of("layers", 3) == ((1,), (2,))
    assert roles.axes_of("conv0/w", 4) == ((0, 1, 2), (3,))
    shapes = {"query": {"w": (6, 2, 3)}, "up": {"w": (6, 6)}, "z": (6, 4)}
    heads = follow(baselines.Muon(schedule="constant").make(3, 1.0), 3, shapes)
    flat = {"query": {"w": (6, 6)}, "up": {"w": (6, 6)}, "z": (6, 4)}
    one = follow(baselines.Muon(schedule="constant").make(3, 1.0), 3, flat)
    for a, b in zip(heads, one, strict=True):
        np.testing.assert_allclose(
            a["query"]["w"].reshape(6, 6), b["query"]["w"], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("scaling", muon.SCALINGS)
def test_muon_is_optax_muon_with_flat_kernels_and_adam_at_rates_of_its_own(scaling):
    rate = 0.1
    ours = follow(
        baselines.Muon(
            schedule="constant", warmup=0.0, scaling=scaling, output=0.7
        ).make(5, rate)
    )
    last = contrib.MuonDimensionNumbers
    numbers = {
        "conv0": {"w": last((0, 1, 2), (3,)), "b": None},
        "embedding": None,
        "layer2": {"w": last((0,), (1,))},
        "layer10": {"w": None},
        "stack": last((1,), (2,)),
    }
    theirs = follow(
        contrib.muon(
            rate,
            muon_weight_dimension_numbers=numbers,
            consistent_rms=0.2 if scaling == "rms" else None,
        )
    )
    adam = {r: follow(optax.adam(r * rate)) for r in (0.3, 1.0, 0.7)}
    for t, updates in enumerate(ours):
        for path in (("conv0", "w"), ("layer2", "w"), ("stack",)):
            alike(_at(updates, path), _at(theirs[t], path))
        alike(updates["conv0"]["b"], adam[0.3][t]["conv0"]["b"])
        alike(updates["embedding"], adam[1.0][t]["embedding"])
        alike(updates["layer10"], adam[0.7][t]["layer10"])


def test_the_strong_form_of_muon():
    """The default: what README's claims are made against."""
    spec = evaluate.baseline("muon")
    assert spec.settings["schedule"] == "linear" and spec.settings["warmup"] == 0.02
    n, peak = 100, 0.05
    updates = follow(spec.transformation(n, peak), 6)
    plain = follow(baselines.Muon(schedule="constant", warmup=0.0).make(n, 1.0), 6)
    for t in range(6):
        rate = peak * min((t + 1) / 2, (n - t) / 98)
        alike(updates[t], jax.tree.map(lambda u: rate * u, plain[t]))  # noqa: B023


def test_normuon_keeps_the_norm_and_evens_the_outputs():
    shapes = {"a": {"w": (6, 4)}, "b": {"w": (6, 6)}}
    norm = baselines.Muon(neurons=0.95, schedule="constant", warmup=0.0)
    found = follow(norm.make(4, 1.0), 4, shapes)
    plain = follow(
        baselines.Muon(schedule="constant", warmup=0.0).make(4, 1.0), 4, shapes
    )
    second = np.zeros(4)
    for t in range(4):
        base = -np.asarray(plain[t]["a"]["w"], np.float64)  # shape's factor is 1
        second = 0.95 * second + 0.05 * (base**2).mean(axis=0)
        turned = base / np.sqrt(second)
        turned *= np.linalg.norm(base) / np.linalg.norm(turned)
        np.testing.assert_allclose(found[t]["a"]["w"], -turned, rtol=1e-3)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def test_schedule_free_muon_is_optax_schedule_free_around_muon_without_momentum():
    n, peak = 50, 0.1
    ours = follow(baselines.ScheduleFreeMuon(warmup=0.1).make(n, peak), 8)
    adam = lambda rate: optax.chain(  # noqa: E731
        optax.scale_by_rms(0.999, eps_in_sqrt=False, bias_correction=True),
        optax.scale_by_learning_rate(rate),
    )
    ramp = lambda count: peak * jnp.minimum(1.0, (count + 1) / 5)  # noqa: E731
    base = optax.partition(
        {
            "matrices": contrib.muon(
                ramp,
                beta=0.0,
                nesterov=False,
                muon_weight_dimension_numbers=muon.dimension_numbers,
            ),
            "embeddings": adam(ramp),
            "vectors": adam(lambda count: 0.3 * ramp(count)),
        },
        baselines.Muon().labels,
    )
    weight = lambda count: ramp(count - 1)  # noqa: E731
    theirs = follow(contrib.schedule_free(base, weight, b1=0.9), 8)
    for a, b in zip(ours, theirs, strict=True):
        alike(a, b, 1e-3)


@pytest.mark.parametrize("kind", averages.AVERAGES)
def test_averages_of_the_parameters(kind):
    n, window = 20, 0.25
    optimizer = averages.averaged(optax.sgd(0.1), kind, n, window)
    params: Any = {"w": jnp.ones(3)}
    state, path = optimizer.init(params), []
    for t in range(n):
        updates, state = optimizer.update(draw(t, {"w": (3,)}), state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params["w"], np.float64))
    t = np.arange(1, n + 1)
    weights = {
        "exponential": 0.8 ** (n - t),  # 1 - 1 / (0.25 x 20)
        "uniform": (t > 15).astype(float),
        # After t updates the newest has (1 + 8) / (t + 8).
        "polynomial": np.asarray(
            [9 / (i + 8) * np.prod(1 - 9 / (np.arange(i + 1, n + 1) + 8)) for i in t]
        ),
    }[kind]
    expected = (weights[:, None] * np.stack(path)).sum(0) / weights.sum()
    np.testing.assert_allclose(
        averages.averaged_params(state, params)["w"], expected, rtol=1e-5
    )


def test_a_run_that_is_read_out_is_scored_at_the_average(tmp_path):
    """Noise that the last parameters follow and the average does not."""
    problem = noisy_problem()
    specs = optimizer_specs(["adamw_ema", "a=adamw_ema[average=none]", "adam"])
    study, outcome = evaluate.run_study(
        evaluate.Store(tmp_path), specs, [problem], [0, 1], measure_cost=False
    )
    assert not outcome.failed
    cell = study.group("adamw_ema", "noisy")
    assert cell.read_out is not None and cell.read_out.shape == (2, 7)
    summary = evaluate.summarise(study)
    entry, plain = (summary.entries[n, "noisy"] for n in ("adamw_ema", "a"))
    best = specs[0].learning_rates.index(entry.rate)
    np.testing.assert_allclose(entry.final, cell.read_out[:, best])
    assert np.all(entry.final < plain.held_out.valid)
    assert study.group("a", "noisy").read_out is None
    assert "train/loss" not in entry.metrics


def noisy_problem() -> evaluate.Problem:
    from lopax.tasks import from_functions

    def init(key):
        return {"w": jax.random.normal(key, (20,))}

    def batch(key):
        return 3.0 * jax.random.normal(key, (20,))

    def loss(params, noise):
        w = params["w"]
        return jnp.sum(w**2) + jnp.sum(noise * w) + 1.0

    config = evaluate.RunConfig(num_steps=60, eval_every=60, final_batches=200)
    task = from_functions(init, loss, batch=batch)
    return evaluate.Problem(name="noisy", make=lambda: task, config=config)


def test_soap_is_adam_in_a_fixed_basis_while_the_basis_does_not_move():
    shapes = {"w": (4, 4), "b": (5,)}
    settings = baselines.Soap(schedule="constant", warmup=0.0, frequency=100)
    found = follow(settings.make(5, 1.0), 5, shapes)
    grads = [draw(t, shapes) for t in range(5)]
    assert all(not np.any(u) for u in jax.tree.leaves(found[0]))  # starts the averages
    first = np.asarray(grads[0]["w"], np.float64)
    left, right = np.linalg.eigh(first @ first.T)[1], np.linalg.eigh(first.T @ first)[1]
    adam: Any = optax.scale_by_adam(b1=0.95, b2=0.95, eps=0.0)
    turned = [left.T @ np.asarray(g["w"], np.float64) @ right for g in grads[1:]]
    state = adam.init({"w": jnp.zeros((4, 4)), "b": jnp.zeros(5)})
    for t in range(1, 5):
        direction, state = adam.update(
            {"w": jnp.asarray(turned[t - 1]), "b": grads[t]["b"]}, state
        )
        expected = left @ np.asarray(direction["w"]) @ right.T
        np.testing.assert_allclose(found[t]["w"], -expected, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(found[t]["b"], -direction["b"], rtol=1e-4)


def test_soap_turns_towards_the_eigenbasis_and_leaves_long_sides_alone():
    settings = baselines.Soap(frequency=1, max_dimension=5)
    rule: Any = soap.scale_by_soap(settings)
    params = {"w": jnp.zeros((8, 4))}
    state = rule.init(params)
    scale = jnp.asarray([4.0, 2.0, 1.0, 0.5])
    rotation = jnp.linalg.qr(draw(7, {"w": (4, 4)})["w"])[0]
    step = jax.jit(rule.update)
    for t in range(200):
        grad = {"w": (draw(t, {"w": (8, 4)})["w"] * scale) @ rotation.T}
        _, state = step(grad, state)
    (tensor,) = state.tensors
    assert tensor.left is None
    basis, average = np.asarray(tensor.right.basis), np.asarray(tensor.right.average)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-5)
    rest = basis.T @ average @ basis
    assert np.abs(rest - np.diag(np.diag(rest))).max() < 0.05 * np.abs(rest).max()


def test_soap_has_the_numbers_of_heavyball():
    """Development only: the PyTorch package need not be there."""
    pytest.importorskip("heavyball", reason="development only: heavyball is not here")
    import heavyball
    import torch

    shapes = {"w": (6, 6), "b": (5,)}
    grads = [draw(t, shapes) for t in range(8)]
    start = draw(100, shapes)
    theirs = {
        k: torch.nn.Parameter(torch.tensor(np.asarray(v))) for k, v in start.items()
    }
    heavyball.utils.compile_mode = None
    optimizer = heavyball.SOAP(
        theirs.values(),
        lr=0.01,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        precondition_frequency=2,
        merge_dims=False,
        use_precond_schedule=False,
        compile_step=False,
    )
    settings = baselines.Soap(schedule="constant", warmup=0.0, b1=0.9, frequency=2)
    params: Any = start
    ours: Any = settings.make(8, 0.01)
    state, step = ours.init(start), jax.jit(ours.update)
    for grad in grads:
        for k, p in theirs.items():
            p.grad = torch.tensor(np.asarray(grad[k]))
        optimizer.step()
        updates, state = step(grad, state, params)
        params = optax.apply_updates(params, updates)
        for k, p in theirs.items():
            moved = p.detach().numpy() - np.asarray(start[k])
            np.testing.assert_allclose(
                params[k] - start[k], moved, rtol=5e-3, atol=2e-5
            )


FREE = {
    "dowg": lambda n: contrib.dowg(),
    "momo": lambda n: contrib.momo(1.0),
    "momo_adam": lambda n: contrib.momo_adam(1e-2),
    "cocob": lambda n: contrib.cocob(alpha=100.0),
    "prodigy_cosine": lambda n: contrib.prodigy(
        lambda t: 0.5 * (1 + jnp.cos(jnp.pi * jnp.maximum(t - 1, 0) / (n - 1)))
    ),
    "dadapt_adamw": lambda n: contrib.dadapt_adamw(
        lambda t: jnp.minimum((t + 1) / 5, (n - t) / (n - 5))
    ),
    "mechanic_adamw": lambda n: contrib.mechanize(
        optax.adamw(
            lambda t: jnp.minimum(
                (t + 1) / 5,
                0.5 * (1 + jnp.cos(jnp.pi * jnp.maximum(t - 5, 0) / (n - 5))),
            )
        )
    ),
    "dog": lambda n: contrib.dog(),
}


@pytest.mark.parametrize("name", baselines.TUNING_FREE)
def test_tuning_free_baselines_are_those_of_optax(name):
    spec = evaluate.baseline(name)
    assert not spec.tunable and spec.note
    shapes = {"w": (4, 3), "b": (3,)}
    for a, b in zip(
        follow(spec.transformation(100, None), 8, shapes),
        follow(FREE[name](100), 8, shapes),
        strict=True,
    ):
        alike(a, b, 1e-3)


def test_adamw_and_schedule_free_adamw_are_those_of_optax():
    n, peak = 100, 0.01
    spec = evaluate.configured("adamw_linear", weight_decay=0.1, b2=0.95)
    rate = lambda t: peak * jnp.minimum((t + 1) / 2, (n - t) / 98)  # noqa: E731
    theirs = follow(optax.adamw(rate, b2=0.95, weight_decay=0.1))
    for a, b in zip(follow(spec.transformation(n, peak)), theirs, strict=True):
        alike(a, b)
    ours = follow(
        evaluate.baseline("schedule_free_adamw_algoperf").transformation(n, peak)
    )
    theirs = follow(
        contrib.schedule_free_adamw(
            peak, 2, b1=0.9, b2=0.9955159689799007, weight_decay=0.08121616522670176
        )
    )
    for a, b in zip(ours, theirs, strict=True):
        alike(a, b)


def test_settings_in_brackets_and_their_keys():
    plain, same = optimizer_spec("muon"), optimizer_spec("muon[]")
    other = optimizer_spec("M=muon[schedule=cosine,output=0.5]@0.02")
    assert same.identity == plain.identity and len(plain.learning_rates) == 7
    assert other.name == "M" and other.learning_rates == ()
    assert other.settings["schedule"] == "cosine" and other.settings["output"] == 0.5
    assert other.settings["learning_rate"] == 0.02
    assert optimizer_spec("muon[embeddings=none]").settings["embeddings"] is None
    assert optimizer_spec("muon[nesterov=false]").settings["nesterov"] is False
    changed = evaluate.configured("muon", schedule="cosine")
    assert changed.name == "muon[schedule=cosine]"
    assert changed.identity != plain.identity
    named = optimizer_specs(["muon[vectors=1]", "muon[vectors=2]"])
    assert [s.name for s in named] == ["muon[vectors=1]", "muon[vectors=2]"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("muon[schedule=cos]", "schedule = 'cos': must be one of 'constant', 'cosine'"),
        ("muon[scaling=wide]", "scaling = 'wide': must be one of 'shape', 'rms'"),
        ("muon[vectors=-1]", "vectors = -1.0: must be a number >= 0"),
        ("muon[warmup=1.5]", "warmup = 1.5: must be a number >= 0.0 and < 1.0"),
        ("muon[beta=fast]", "muon.beta = 'fast': must be of type float"),
        ("muon[schedule]", "'schedule' is no setting; write key=value"),
        ("adamw_ema[average=mean]", "average = 'mean': must be one of 'exponential'"),
        ("soap[frequency=0]", "frequency = 0: must be a number >= 1"),
        ("adam[b1=0.8]", "settings in brackets are for muon"),
        ("celo[b1=0.8]", "settings in brackets are for muon"),
        ("dog@0.1", "'dog' has one setting and no learning rate to set"),
        ("muon@fast", "'fast' is no learning rate > 0"),
        ("muon@-1", "'-1' is no learning rate > 0"),
    ],
)
def test_bad_settings_are_named_with_the_legal_ones(reference, message):
    with pytest.raises(ConfigError) as caught:
        optimizer_spec(reference)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_roles_and_baselines_name_what_there_is():
    with pytest.raises(UnknownName, match="embeddings"):
        optimizer_spec("muon[embedding=1]")
    with pytest.raises(UnknownName, match="'muon'"):
        evaluate.configured("moun")

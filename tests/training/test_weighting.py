"""Compares the loss weighters with slow loops. Some tasks are absent at some steps."""

import math
import random
import re
from pathlib import Path

import pytest
import torch

from hcal_hf import HcalTrainingArguments
from hcal_hf.training.weighting import (
    WEIGHTERS,
    FamoWeighter,
    GradNormWeighter,
    HcalRateWeighter,
    HcalWeighter,
    LikelihoodWeighter,
    LossWeighter,
    UniformWeighter,
    build_weighter,
)

# The arguments of each weighter in these tests.
KWARGS = {name: {} for name in WEIGHTERS} | {"dwa": {"period": 3}}


def build(name, num_tasks, **kwargs):
    needed = {"weights": list(range(1, num_tasks + 1))} if name == "fixed" else {}
    return build_weighter(name, num_tasks, **{**KWARGS[name], **needed, **kwargs}).double()


def float64(values, kind=torch.float64):
    return torch.tensor(values, dtype=kind)


# ---- Slow references: functions of all steps so far, on lists and floats; `present` is a list of bools ----


def softmax(scores):
    top = max(scores)
    exponentials = [math.exp(score - top) for score in scores]
    return [e / sum(exponentials) for e in exponentials]


def over(present, values):
    """Returns one value per task: those of the present tasks in order, and 0 for absent tasks."""
    values = iter(values)
    return [next(values) if here else 0.0 for here in present]


def uniform(history, present):
    return over(present, [1 / sum(present)] * sum(present))


def fixed(history, present, given=(0.5, 0.2, 2.0, 0.0)):
    total = sum(weight for weight, here in zip(given, present) if here)
    return [weight / total if here else 0.0 for weight, here in zip(given, present)]


def hcal(history, present, gamma=0.5):
    losses = history[-1][0]
    return over(present, softmax([loss / gamma for loss, here in zip(losses, present) if here]))


def series(history, k):
    return [losses[k] for losses, present, _ in history[:-1] if present[k]]


def hcal_rate(history, present, gamma=0.7, rho=0.1, decay=0.9, first_steps=4):
    rates = []
    for k in range(len(present)):
        losses = series(history, k)
        if not losses:
            rates.append(1.0)
            continue
        first = losses[:first_steps]
        average = mean = sum(first) / len(first)
        for loss in losses[first_steps:]:
            average = decay * average + (1 - decay) * loss
        rates.append(average / mean)
    here = [rate for rate, is_here in zip(rates, present) if is_here]
    mean = sum(here) / len(here)
    weights = softmax([rate / (gamma * mean) for rate in here])
    return over(present, [(1 - rho) * weight + rho / len(here) for weight in weights])


def dwa(history, present, temperature=1.5, period=3):
    rates = []
    for k in range(len(present)):
        means, steps = [], history[:-1]
        for start in range(0, len(steps) - len(steps) % period, period):
            losses = [losses[k] for losses, here, _ in steps[start : start + period] if here[k]]
            if losses:
                means.append(sum(losses) / len(losses))
        rates.append(means[-1] / means[-2] if len(means) > 1 else 1.0)
    return over(present, softmax([rate / temperature for rate, here in zip(rates, present) if here]))


def famo(history, present, learning_rate=0.05, decay=0.01):
    tasks = range(len(present))
    logits, moment, square, moves = ([0.0 for _ in tasks] for _ in range(4))
    last = [None for _ in tasks]
    for losses, here, _ in history[:-1]:
        moving = [k for k in tasks if here[k] and last[k] is not None]
        if moving:
            z = softmax([logits[k] for k in moving])
            gains = [math.log(last[k] + 1e-8) - math.log(losses[k] + 1e-8) for k in moving]
            for i, k in enumerate(moving):
                jacobian = [z[j] * ((i == j) - z[i]) for j in range(len(moving))]
                gradient = sum(row * gain for row, gain in zip(jacobian, gains)) + decay * logits[k]
                moves[k] += 1
                moment[k] = 0.9 * moment[k] + 0.1 * gradient
                square[k] = 0.999 * square[k] + 0.001 * gradient**2
                step = moment[k] / (1 - 0.9 ** moves[k])
                logits[k] -= learning_rate * step / (math.sqrt(square[k] / (1 - 0.999 ** moves[k])) + 1e-8)
        for k in tasks:
            last[k] = losses[k] if here[k] else last[k]
    here = [k for k in tasks if present[k]]
    known = [last[k] for k in here if last[k] is not None]
    stand_in = sum(known) / len(known) if known else 1.0
    z = softmax([logits[k] for k in here])
    weights = [z[i] / (stand_in if last[k] is None else last[k]) for i, k in enumerate(here)]
    return over(present, [weight / sum(weights) for weight in weights])


def gradnorm(history, present, alpha=0.8, learning_rate=0.1):
    tasks = range(len(present))
    weights, first = [1.0 for _ in tasks], {}
    for losses, is_here, norms in history[:-1]:
        here = [k for k in tasks if is_here[k]]
        for k in here:
            first.setdefault(k, losses[k])
        ratios = {k: losses[k] / first[k] for k in here}
        mean_ratio = sum(ratios.values()) / len(here)
        mean_length = sum(weights[k] * norms[k] for k in here) / len(here)
        mean_norm = sum(norms[k] for k in here) / len(here)
        moved = {}
        for k in here:
            gap = weights[k] * norms[k] - mean_length * (ratios[k] / mean_ratio) ** alpha
            moved[k] = max(weights[k] - learning_rate * math.copysign(1, gap) * norms[k] / mean_norm, 0.01)
        scale = sum(weights[k] for k in here) / sum(moved.values())
        for k in here:
            weights[k] = moved[k] * scale
    total = sum(weights[k] for k in tasks if present[k])
    return [weights[k] / total if present[k] else 0.0 for k in tasks]


REFERENCES = {
    "uniform": (uniform, {}),
    "likelihood": (uniform, {}),  # without counts; a test below passes counts
    "fixed": (fixed, {"weights": [0.5, 0.2, 2.0, 0.0]}),
    "hcal": (hcal, {}),
    "hcal_rate": (hcal_rate, {"gamma": 0.7, "rho": 0.1, "decay": 0.9, "first_steps": 4}),
    "dwa": (dwa, {"temperature": 1.5, "period": 3}),
    "famo": (famo, {"learning_rate": 0.05, "decay": 0.01}),
    "gradnorm": (gradnorm, {"alpha": 0.8, "learning_rate": 0.1}),
}


def some_steps(seed, steps=24, tasks=4):
    """Returns (losses, present, gradient norms) per step. The last task starts late, and others are sometimes absent."""
    rng = random.Random(seed)
    found = []
    for step in range(steps):
        present = [rng.random() < 0.7 for _ in range(tasks)]
        present[-1] &= step >= 5
        present[step % (tasks - 1)] = True
        present[1] &= not 11 <= step < 19  # absent for whole periods of `dwa`
        present[0] |= not any(present)
        losses = [(k + 1) * math.exp(-0.05 * step * k) * rng.uniform(0.5, 1.5) for k in range(tasks)]
        norms = [rng.uniform(0.1, 3.0) for _ in range(tasks)]
        found.append(([loss if here else 0.0 for loss, here in zip(losses, present)], present, norms))
    return found


def move(weighter, losses, present, norms):
    arguments = [float64(losses), torch.tensor(present)]
    weighter.after_step(*arguments, *([float64(norms)] if weighter.needs_gradient_norms else []))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", REFERENCES)
def test_weights_match_a_slow_reference(name, seed):
    reference, kwargs = REFERENCES[name]
    weighter = build(name, 4, **kwargs)
    different = set()
    for step, (losses, present, norms) in enumerate(steps := some_steps(seed)):
        history = steps[: step + 1]
        expected = reference(history, present)
        weights = weighter(float64(losses), torch.tensor(present))
        assert weights.dtype == torch.float64
        assert weights.tolist() == pytest.approx(expected, abs=1e-12 if name != "fixed" else 1e-7), step
        assert sum(expected) == pytest.approx(1)
        different.add(tuple(round(weight / max(expected), 6) for weight in expected))
        move(weighter, losses, present, norms)
    # The weights changed between steps, and not only because tasks were absent.
    assert len(different) > (5 if name in ("uniform", "fixed", "likelihood") else 15)


def test_every_weighter_has_a_slow_reference():
    assert {*REFERENCES, "uncertainty"} == set(WEIGHTERS)


def test_uncertainty_follows_the_gradient_of_its_objective():
    weighter = build("uncertainty", 4)
    optimizer = torch.optim.SGD(weighter.parameters(), lr=0.3)
    s = [0.0] * 4
    for step, (losses, present, _) in enumerate(some_steps(0)):
        number = sum(present)
        expected = [math.exp(-s[k]) / number if present[k] else 0.0 for k in range(4)]
        here, losses_ = torch.tensor(present), float64(losses)
        weights = weighter(losses_, here)
        assert weights.tolist() == pytest.approx(expected, abs=1e-12)
        assert weighter.penalty(here).item() == pytest.approx(sum(s[k] for k in range(4) if present[k]) / 2 / number)
        optimizer.zero_grad()
        ((weights * losses_).sum() + weighter.penalty(here)).backward()
        optimizer.step()
        for k in range(4):
            if present[k]:
                s[k] -= 0.3 * (0.5 - math.exp(-s[k]) * losses[k]) / number
        assert weighter.log_variances.tolist() == pytest.approx(s, abs=1e-12), step
    assert min(abs(value) for value in s) > 0.02


def test_uncertainty_converges_to_twice_the_loss_and_is_bounded_for_a_zero_loss():
    weighter = build("uncertainty", 2, learning_rate=0.1)
    assert weighter.learning_rate == 0.1
    optimizer = torch.optim.Adam(weighter.parameters(), lr=0.1)
    losses, present = float64([0.4, 0.0]), torch.tensor([True, True])
    for _ in range(400):
        optimizer.zero_grad()
        ((weighter(losses) * losses).sum() + weighter.penalty(present)).backward()
        weighter.after_step(losses, present)
        optimizer.step()
    assert weighter.log_variances[0].item() == pytest.approx(math.log(0.8), abs=1e-3)
    assert -10.2 < weighter.log_variances[1].item() < -9.8


@pytest.mark.parametrize("gamma", [0.1, 0.5, 3.0])
def test_hcal_is_a_softmax_of_the_losses(gamma):
    losses = torch.tensor([0.2, 1.5, 0.9], dtype=torch.float64, requires_grad=True)
    exponentials = [math.exp(loss / gamma) for loss in losses.tolist()]
    weights = HcalWeighter(3, gamma=gamma)(losses)
    assert weights.tolist() == pytest.approx([e / sum(exponentials) for e in exponentials])
    assert not weights.requires_grad


def test_hcal_follows_the_gradient_of_gamma_times_logsumexp():
    losses = torch.tensor([0.2, 1.5, 0.9], dtype=torch.float64, requires_grad=True)
    (HcalWeighter(3, gamma=0.5)(losses) * losses).sum().backward()
    gradient = losses.grad.clone()
    losses.grad = None
    (0.5 * torch.logsumexp(losses / 0.5, dim=0)).backward()
    torch.testing.assert_close(gradient, losses.grad)


def test_likelihood_weights_levels_by_their_number_of_terms():
    weighter, losses = LikelihoodWeighter(3).double(), float64([9.0, 0.0, 0.1])
    counts = torch.tensor([4, 0, 12])
    assert weighter(losses, counts > 0, counts).tolist() == [0.25, 0, 0.75]
    assert weighter(losses, None, torch.tensor([1, 1, 2])).tolist() == [0.25, 0.25, 0.5]
    assert weighter(losses, torch.zeros(3, dtype=torch.bool), counts * 0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", WEIGHTERS)
def test_absent_tasks_have_weight_0_and_the_others_sum_to_1(name):
    weighter = build(name, 4)
    losses = float64([1.0, 0.0, 2.0, 100.0])
    present = torch.tensor([True, False, True, False])
    weights = weighter(losses, present)
    assert weights[[1, 3]].tolist() == [0, 0]
    assert (weights[[0, 2]] > 0).all()
    assert weights.sum().item() == pytest.approx(1)
    if name != "fixed":
        assert weights[[0, 2]].tolist() == pytest.approx(build(name, 2)(losses[[0, 2]]).tolist())
    assert weighter(losses, torch.zeros(4, dtype=torch.bool)).tolist() == [0, 0, 0, 0]
    assert weighter(losses).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", WEIGHTERS)
def test_a_task_that_is_always_absent_does_not_change_the_other_weights(name):
    """With the second of four tasks always absent, the weights are those of three tasks."""
    four, three = (
        build(name, n, **({"weights": [1.0, 5.0, 2.0, 3.0][:n]} if name == "fixed" else {})) for n in (4, 3)
    )
    if name == "fixed":
        three = build(name, 3, weights=[1.0, 2.0, 3.0])
    rest = [0, 2, 3]
    for losses, present, norms in some_steps(1):
        present = [present[0], False, present[2], present[3]]
        weights = four(float64(losses), torch.tensor(present))
        fewer = [[values[k] for k in rest] for values in (losses, present, norms)]
        assert weights[rest].tolist() == pytest.approx(three(float64(fewer[0]), torch.tensor(fewer[1])).tolist())
        move(four, losses, present, norms)
        move(three, *fewer)
    before = build(name, 4).state_dict()
    for key, value in four.state_dict().items():
        if value.ndim:  # one value per task
            assert value[1] == before[key][1], key


@pytest.mark.parametrize("name", WEIGHTERS)
def test_weights_stay_finite_when_a_level_has_no_loss_from_the_start(name):
    """The cross-entropy of a level with one label is always 0."""
    weighter = build(name, 3)
    for step in range(30):
        losses = [1.0 / (step + 1), 0.0, 2.0]
        weights = weighter(float64(losses))
        assert weights.isfinite().all()
        assert weights[[0, 2]].sum() > 0.5, (step, weights)
        move(weighter, losses, [True] * 3, [1.0, 0.0, 2.0])
    zero = weighter(torch.zeros(3, dtype=torch.float64))
    assert zero.sum().item() == pytest.approx(1)
    move(weighter, [0.0] * 3, [True] * 3, [0.0] * 3)
    assert weighter(torch.zeros(3, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("name", ["hcal_rate", "dwa", "gradnorm"])
def test_the_task_that_improves_slowly_gains_weight_at_any_loss_scale(name):
    found = []
    for scale in (1.0, 50.0):
        weighter = build(name, 2)
        for step in range(40):
            move(weighter, [scale * 2.0 * 0.95**step, 2.0], [True, True], [1.0, 1.0])
        found.append(weighter(float64([1.0, 1.0])))
    assert found[0][1] > found[0][0]
    torch.testing.assert_close(*found)


def test_famo_gives_more_weight_to_the_task_that_improves_less():
    weighter = FamoWeighter(2).double()
    for step in range(40):
        move(weighter, [2.0 * 0.95**step, 2.0], [True, True], None)
    assert weighter.logits[1] - weighter.logits[0] > 0.5


def test_famo_starts_with_equal_weights_and_then_divides_by_the_loss():
    weighter = FamoWeighter(2).double()
    assert weighter(float64([1.0, 4.0])).tolist() == [0.5, 0.5]
    move(weighter, [1.0, 4.0], [True, True], None)
    assert weighter(float64([9.0, 9.0])).tolist() == pytest.approx([0.8, 0.2])


def test_hcal_rate_keeps_every_weight_at_least_rho_over_the_number_of_tasks():
    weighter = HcalRateWeighter(4, gamma=0.01, rho=0.2).double()
    for losses in ([1.0, 1.0, 1.0, 1.0], [0.1, 0.2, 0.3, 5.0]):
        for _ in range(50):
            move(weighter, losses, [True] * 4, None)
    assert weighter(float64([0.0] * 4)).tolist() == pytest.approx([0.05, 0.05, 0.05, 0.85])
    assert set(weighter.report()) == {"rate"}
    assert weighter.report()["rate"].argmax() == 3


def test_uniform_gives_equal_weights():
    assert UniformWeighter(4)(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [0.25] * 4


def test_gradnorm_with_alpha_0_equalises_the_gradient_norms():
    weighter = GradNormWeighter(2, alpha=0.0, learning_rate=0.01).double()
    for _ in range(300):
        move(weighter, [1.0, 1.0], [True, True], [1.0, 4.0])
    weights = weighter(float64([1.0, 1.0]))
    assert (weights * float64([1.0, 4.0])).tolist() == pytest.approx([0.8, 0.8], abs=0.05)


def test_gradnorm_keeps_weights_positive_with_a_constant_sum():
    weighter = GradNormWeighter(3, learning_rate=2.0).double()
    for losses, _, norms in some_steps(0, tasks=3):
        move(weighter, [loss + 0.1 for loss in losses], [True] * 3, norms)
        assert weighter.weights.min() > 1e-3
        assert weighter.weights.sum().item() == pytest.approx(3)


@pytest.mark.parametrize("name", WEIGHTERS)
def test_computing_weights_does_not_change_the_state_and_the_state_is_saved_completely(name):
    weighter = build(name, 4)
    steps = some_steps(2)
    for losses, present, norms in steps[:12]:
        move(weighter, losses, present, norms)
    saved = {key: value.clone() for key, value in weighter.state_dict().items()}
    again = build(name, 4)
    again.load_state_dict(saved)
    for _ in range(3):
        weighter(float64([3.0, 1.0, 2.0, 9.0]), torch.tensor([True, True, False, True]))
        weighter.penalty(torch.tensor([True, True, False, True]))
    for losses, present, norms in steps[12:]:
        here = torch.tensor(present)
        assert torch.equal(weighter(float64(losses), here), again(float64(losses), here))
        move(weighter, losses, present, norms)
        move(again, losses, present, norms)


def test_unknown_weighters_and_arguments_are_refused_with_suggestions():
    with pytest.raises(
        ValueError, match=r"one of dwa, famo, fixed, .*, uniform, got 'hcal_rte'\. Closest: 'hcal_rate'"
    ):
        build_weighter("hcal_rte", 2)
    with pytest.raises(ValueError, match=r"has 'gama', but loss_weighting='hcal' takes gamma\. Closest: 'gamma'"):
        build_weighter("hcal", 2, gama=1)
    with pytest.raises(ValueError, match="has 'gamma', but loss_weighting='uniform' takes none"):
        build_weighter("uniform", 2, gamma=1)
    with pytest.raises(ValueError, match="loss_weighting='fixed' needs weights in loss_weighting_kwargs"):
        build_weighter("fixed", 2)
    with pytest.raises(ValueError, match="do not fit loss_weighting='hcal'"):
        build_weighter("hcal", 2, gamma="high")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("hcal", {"gamma": 0}, "gamma must be a finite number above 0, got 0"),
        ("hcal_rate", {"gamma": 0}, "gamma must be a finite number above 0, got 0"),
        ("hcal_rate", {"rho": 1.5}, "rho must be from 0 to 1, got 1.5"),
        ("hcal_rate", {"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
        ("hcal_rate", {"first_steps": 0}, "first_steps must be at least 1, got 0"),
        ("dwa", {"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        ("dwa", {"period": 0}, "period must be a whole number of at least 1, got 0"),
        ("uncertainty", {"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ("famo", {"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ("famo", {"decay": -1}, "decay must be 0 or above, got -1"),
        ("gradnorm", {"alpha": -1}, "alpha must be 0 or above, got -1"),
        ("gradnorm", {"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ("fixed", {"weights": [1.0]}, "weights must be 3 numbers, one for each level from the top, got 1"),
        ("fixed", {"weights": [1, -1, 1]}, r"not all 0, got \[1.0, -1.0, 1.0\]"),
        ("fixed", {"weights": [0, 0, 0]}, "not all 0"),
        ("fixed", {"weights": [1, float("nan"), 1]}, "finite"),
    ],
)
def test_arguments_out_of_range_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_weighter(name, 3, **kwargs)


def test_a_custom_weighter_can_be_registered(monkeypatch, tmp_path):
    class Mine(LossWeighter):
        def __init__(self, num_tasks, power=1.0):
            super().__init__(num_tasks)
            self.power = power

        def forward(self, losses, present=None):
            return torch.ones_like(losses) * self.power

    monkeypatch.setitem(WEIGHTERS, "mine", Mine)
    assert build_weighter("mine", 2, power=2.0).power == 2.0
    args = HcalTrainingArguments(str(tmp_path), loss_weighting="mine", loss_weighting_kwargs='{"power": 3}')
    assert args.loss_weighting_kwargs == {"power": 3}
    with pytest.raises(ValueError, match=r"loss_weighting='mine' takes power\. Closest: 'power'"):
        HcalTrainingArguments(str(tmp_path), loss_weighting="mine", loss_weighting_kwargs={"powr": 3})
    with pytest.raises(ValueError, match=r"got 'mien'\. Closest: 'mine'"):
        HcalTrainingArguments(str(tmp_path), loss_weighting="mien")


def test_the_custom_weighter_of_the_manual_works():
    text = (Path(__file__).parents[2] / "docs/how-to/adaptive-weighting.md").read_text(encoding="utf-8")
    assert set(WEIGHTERS) <= set(re.findall(r"`(\w+)`", text))
    scope = {}
    try:
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(code, "adaptive-weighting.md", "exec"), scope)
        weighter = build_weighter("top_first", 3)
        assert weighter(float64([1.0, 2.0, 3.0])).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
        weights = weighter(float64([1.0, 0.0, 3.0]), torch.tensor([True, False, True]))
        assert weights.tolist() == pytest.approx([0.8, 0.0, 0.2])
    finally:
        WEIGHTERS.pop("top_first", None)

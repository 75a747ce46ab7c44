"""What the numbers of a run mean for who reads them: sentences, and options that are worth a try."""

from typing import NamedTuple

import numpy as np

from plumage.report import statistics
from plumage.report.reading import Run
from plumage.report.style import short
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.scores import wilson

OVER_FIT = 0.1  # from which difference of training and validation accuracy on a network has over-fitted
NEARLY = 0.03  # a difference of fractions that is too small to speak of
NAMES = 3  # classes that a sentence names


class Finding(NamedTuple):
    """One of the things to know first: its kind, what it says, and options to try, as one writes them."""

    kind: str
    says: str
    tries: tuple[str, ...] = ()


def findings(run: Run) -> list[Finding]:
    """Return what a reader should know first, most important first."""
    found: list[Finding | None] = []
    if evaluation := run.evaluation:
        found = [chance(run, evaluation), failing(run, evaluation), imbalance(run, evaluation)]
    return [finding for finding in (*found, fit(run)) if finding]


def chance(run: Run, evaluation: Evaluation) -> Finding:
    """Say how sure the accuracy is, and what always guessing the most frequent class would give.

    That it has not learnt to tell the classes apart is only said where its balanced accuracy is a guess's, too.
    """
    n, right, scores = len(evaluation.labels), int(evaluation.right.sum()), evaluation.class_scores
    (low,), (high,) = wilson(np.array([right]), np.array([n]))
    most, guess = evaluation.majority
    alike = np.ptp(scores.pictures[scores.pictures > 0]) == 0
    always = "Guessing" if alike else f"Always guessing the most frequent class, {short(run.classes[most], 40)},"
    says = (
        f"{percent(right / n, 1)} of {n:,} validation pictures are right: of more such pictures, {percent(low)} to "
        f"{percent(high)} would be (95 % interval). {always} gives {percent(guess, 1)}"
    )
    if low > guess:
        return Finding("accuracy", f"{says}.")
    if not scores.tells_classes:
        return Finding("accuracy", f"{says}, which is as good: it has not learnt to tell the classes apart.")
    says += (
        ": by its accuracy it is not surely better. Its balanced accuracy, the mean over the classes, is "
        f"{percent(scores.balanced_accuracy, 1)}; a guess's is {percent(scores.chance, 1)}."
    )
    return Finding("accuracy", says)


def failing(run: Run, evaluation: Evaluation) -> Finding | None:
    """Say how many classes are never right, and whether they are those with few pictures."""
    scores = evaluation.class_scores
    never = scores.never_right
    if not len(never):
        return None
    named = ", ".join(short(run.classes[number], 40) for number in never[:NAMES])
    named += f" and {len(never) - NAMES:,} more" if len(never) > NAMES else ""
    is_, has, median = ("is", "It has", "") if len(never) == 1 else ("are", "They have", " in the median")
    says = f"{len(never):,} of {np.count_nonzero(scores.pictures):,} classes {is_} never right: {named}."
    train = run.counts("train")
    few, usual = np.median(train[never]), np.median(train)
    if few < usual / 2:
        says += (
            f" {has} {few:,.0f} training pictures{median}, the median of all classes is {usual:,.0f}: more help most."
        )
    return Finding("classes", says)


def imbalance(run: Run, evaluation: Evaluation) -> Finding | None:
    """Say where the accuracy hides how it does on classes with few pictures."""
    balanced = evaluation.class_scores.balanced_accuracy
    lost = float(evaluation.right.mean()) - balanced
    if lost < NEARLY:
        return None
    says = (
        f"The mean over the classes is {percent(balanced, 1)} (balanced accuracy), {100 * lost:.0f} "
        "points below the accuracy: classes with few pictures do worse than those with many."
    )
    tries = {"--balance 0.5": not run.recipe.balance, "--best balanced-accuracy": run.recipe.best == "accuracy"}
    return Finding("balance", says, tuple(option for option, fits in tries.items() if fits))


def fit(run: Run) -> Finding | None:
    """Say whether it has over-fitted, has not learnt enough, or was still learning at the end."""
    if not run.best or not run.finished:
        return None
    train, val = run.best["train_accuracy"], run.best["val_accuracy"]
    both = f"Training accuracy {percent(train)}, validation {percent(val)}:"
    if train - val > OVER_FIT:
        says = (
            f"{both} it over-fits, and knows its training pictures better than what they show. More of them help most."
        )
        return Finding("over-fitting", says, against_over_fitting(run))
    before = run.history[-1 - max(1, len(run.history) // 10)]["val_accuracy"] if len(run.history) > 1 else 0.0
    learning = run.best is run.history[-1] and val - before > NEARLY / 3
    if val > 0.9 or not (learning or train < 0.6):
        return Finding("fit", f"{both} it does not over-fit.")
    how = "was still getting better at the end" if learning else "has learnt little"
    says = f"{both} it does not over-fit, and {how}."
    weights = ("--weights imagenet",) if run.recipe.weights == "none" else ()
    return Finding("under-fitting", says, (f"--epochs {2 * run.recipe.epochs}", *weights))


def against_over_fitting(run: Run) -> tuple[str, ...]:
    """Return up to four options that may help, of those that the run has not taken."""
    recipe, best = run.recipe, run.best["epoch"] if run.best else 0
    options = {
        "--weights imagenet": recipe.weights == "none",
        "--augment resized-crop": recipe.augment == "crop",
        "--mixup 0.2": not recipe.mixup,
        "--smoothing 0.1": not recipe.smoothing,
        "--weight-decay 0.0005": recipe.weight_decay < 0.0005,
        f"--epochs {best}": run.epochs > 1.5 * best > 4,
    }
    return tuple(option for option, fits in options.items() if fits)[:4]


def confidence(evaluation: Evaluation) -> str:
    """Say how sure the network is of itself, and how often it is right."""
    _, sure, right = evaluation.bins.sum(axis=1) / len(evaluation.labels)
    says = f"On average it is {percent(sure)} sure and {percent(right)} right:"
    if abs(sure - right) < NEARLY:
        return f"{says} its probabilities can be trusted as they are."
    if sure < right:
        return f"{says} it knows more than it says, as networks do that learnt with label smoothing."
    return f"{says} it claims more than it knows."


def gap(run: Run, evaluation: Evaluation) -> str:
    """Say where the measured gap lies, seen from the one that the loss asks for."""
    theory, mean = statistics.theoretical_gap(len(run.classes), run.recipe.smoothing), evaluation.logit_gap
    says = f"The largest logit is {mean:.2f} above the mean of the others, on average."
    if theory is None:
        return (
            f"{says} Without label smoothing no finite gap is optimal: the loss falls as the gap grows, and the "
            "network is ever surer, of its mistakes too. Label smoothing sets it a goal."
        )
    says += (
        f" Label smoothing has its optimum at log((K − 1)(1 − ε) / ε) = {theory:.2f}, with K = {len(run.classes)} and "
    )
    says += f"ε = {run.recipe.smoothing:g}: "
    if mean < 0.85 * theory:
        return says + "on pictures it has not seen, the network is less decided than that."
    return says + ("there it is." if mean <= 1.15 * theory else "the network is more decided than that.")


def percent(fraction: float, digits: int = 0) -> str:
    return f"{100 * fraction:.{digits}f} %"

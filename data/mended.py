"""What a person has mended in a run's suspects.csv, which stands for the split.csv beside it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from plumage.data.samples import some
from plumage.errors import UserError
from plumage.names import composed

log = logging.getLogger("plumage")

Labelled = tuple[str, str]  # path and label


def mended_labels(
    where: str, suspects: Sequence[Labelled], split: Path, labels: Sequence[Labelled], written: Mapping[str, str]
) -> dict[str, str]:
    """Return path → label of what was mended; "" where the label was taken away.

    suspects, labels: the rows of suspects.csv and of ``split``. written: path → label of suspects.csv as its run wrote
    it, which counts before those of ``split``, where a person may have mended others. What has no label there stays
    left out. A picture may have several rows, of which some are mended. UserError where it was mended in two ways, or
    is not there.
    """
    now = {path: composed(label.strip()) for path, label in labels}
    was = now | {path: composed(label.strip()) for path, label in written.items()}
    said = [(path, composed(label.strip())) for path, label in suspects if was.get(path) != ""]
    if unknown := [path for path, _ in said if path not in now]:
        raise UserError(f"{where}: {len(unknown)} pictures are not in {split}: {some(unknown, 3)}; take these rows out")
    mended = {path: label for path, label in said if label != was[path]}
    if at_odds := list(dict.fromkeys(path for path, label in said if label not in (was[path], mended.get(path)))):
        what = f"{len(at_odds)} pictures are mended in two ways"
        raise UserError(f"{where}: {what}: {some(at_odds, 3)}; decide on one")
    if both := [path for path, label in mended.items() if now[path] not in (was[path], label)]:
        what = f"{len(both)} pictures have other labels in {split}, where they were mended too"
        raise UserError(f"{where}: {what}: {some(both, 3)}; decide on one")
    log.info(f"{where}: {len(mended)} of the labels in {split} {'is' if len(mended) == 1 else 'are'} mended")
    return mended

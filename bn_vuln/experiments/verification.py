"""Verification of folders: every file is read and checked; what is damaged is set aside, what was left over removed."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from bn_vuln import records
from bn_vuln.auditing import findings, pieces
from bn_vuln.config import digest, identity_of
from bn_vuln.config.grid import expand
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation import kept_parts
from bn_vuln.experiments import attempts, catalog
from bn_vuln.experiments.task import FINISHED
from bn_vuln.records import Damaged, FolderStore, PackedStore, digests
from bn_vuln.records.folder import MEASURE_AGAIN, MEASURED_FOLDERS, PARTS, TRAIN_AGAIN, read_experiment
from bn_vuln.records.packed import REMEDY, SUMS, packed_files
from bn_vuln.runtime import lease
from bn_vuln.runtime.progress import Progress, Quiet, progress_task
from bn_vuln.training import checkpoint

# What says nothing that a number hangs on: of the work on a cell, and what is drawn of numbers.
UNCHECKED = {lease.LOCK, lease.GUARD, attempts.LOG, attempts.FAILED, FINISHED, "tensorboard", "report", "transfer.md"}
AUDIT_AGAIN = "bnvuln audit MODEL, with this folder as --out, makes it again"
NOT_READABLE = "not readable, changed since it was written, or another's"
COMPUTED_AGAIN = "it is computed again when it is needed"
_SET_ASIDE = re.compile(r".+\.damaged\d*")
_IN_CARD = re.compile(r"The file has sha256 ([0-9a-f]{64})\.")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a file.

    Attributes:
        path: The file.
        reason: What is wrong, in one line.
        remedy: What to do about it, in one line.
        aside: The files that a repair renames, this one and those that are nothing without it.
        left_over: Whether a killed process has left it; a repair removes it.
        repaired: What was done about it; "" where nothing was.
    """

    path: Path
    reason: str
    remedy: str
    aside: tuple[Path, ...] = ()
    left_over: bool = False
    repaired: str = ""

    @property
    def text(self) -> str:
        """The problem in one line."""
        return f"{self.path}: {self.reason}; {', '.join(filter(None, (self.repaired, self.remedy)))}"


@dataclass
class Verification:
    """What was found of a folder.

    Attributes:
        files: The number of files that were checked.
        problems: What is wrong.
        unknown: Files and folders of names that bnvuln does not write; they are left alone.
        busy: Folders that were not checked, since a process works in them.
        commands: What to run, so that what is missing is made again.
    """

    files: int = 0
    problems: list[Problem] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    busy: list[Path] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong, or all that was is repaired."""
        return all(one.repaired for one in self.problems)

    @property
    def summary(self) -> str:
        """The numbers in a line."""
        problems, repaired = len(self.problems), sum(bool(one.repaired) for one in self.problems)
        parts = [
            f"{self.files} files checked",
            "nothing is wrong" if not problems else "1 problem" if problems == 1 else f"{problems} problems",
            f"{repaired} repaired" if repaired else "",
            f"{len(self.busy)} folders not checked" if self.busy else "",
            f"{len(self.unknown)} unknown names" if self.unknown else "",
        ]
        return ", ".join(filter(None, parts))

    def add(self, path: Path, reason: str, remedy: str, *aside: Path) -> None:
        """Add a problem of a file."""
        self.problems.append(Problem(path, reason, remedy, (path, *aside)))

    def add_damaged(self, damaged: Iterable[Damaged]) -> None:
        """Add what a store has met."""
        for one in damaged:
            self.add(one.path, one.reason, one.remedy, *_pair(one.path))

    def add_other(self, path: Path, *, held: bool = False) -> None:
        """Add a file of another name than is checked; `held`: no other process works in its folder."""
        if lease.TEMPORARY.fullmatch(path.name):
            if lease.is_left_over(path, held=held):
                self.problems.append(_left_over(path))
        elif path.name not in UNCHECKED and not _SET_ASIDE.fullmatch(path.name):
            self.unknown.append(path)

    def merge(self, other: Verification) -> None:
        """Add what was found of a folder in this one."""
        self.files += other.files
        self.problems += other.problems
        self.unknown += other.unknown
        self.busy += other.busy
        self.commands += other.commands


def _left_over(path: Path) -> Problem:
    return Problem(path, "left by a process that was killed", "--repair removes it", left_over=True)


def verify(root: Path, *, repair: bool = False, progress: Progress | None = None) -> Verification:
    """Check every file of a folder, each against its digest, older ones by what must hold of them.

    Args:
        root: Results folder, run folder, packed store, audit folder, or a folder of such folders.
        repair: Rename what is damaged to NAME.damaged, and remove what killed processes have left. Nothing is changed
            of packed stores, nor of folders that a process works in.
        progress: Receiver of the number of folders that are done.

    Returns:
        What was found, and done.

    Raises:
        UsageError: There is no such folder, or nothing in it that bnvuln has written.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    if records.is_packed(root):
        return _packed(root)
    if _is_worked_in(root):
        return _one(root, repair)
    if not _is_ours(root):
        raise UsageError(f"{root}: no results folder, run, packed store or audit")
    return _results(root, repair, progress or Quiet())


def _is_worked_in(folder: Path) -> bool:
    """Return whether a folder is that of a run or of an audit."""
    return records.is_run_folder(folder) or any(
        (folder / name).exists() for name in (lease.LOCK, checkpoint.NAME, PARTS, findings.FILE, pieces.FOLDER)
    )


def _is_ours(folder: Path, depth: int = 2) -> bool:
    """Return whether bnvuln has written a folder, or one in it."""
    if not folder.is_dir():
        return False
    if records.is_packed(folder) or _is_worked_in(folder) or any((folder / "experiments").glob("*.yaml")):
        return True
    return depth > 0 and any(_is_ours(child, depth - 1) for child in folder.iterdir())


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


# ---------------------------------------------------------------- results folders


def _results(root: Path, repair: bool, progress: Progress) -> Verification:
    found, loose, affected = Verification(), _experiments(root), set()
    children = _entries(root)
    with progress_task(progress, f"verifying {root}", len(children), "folders and files"):
        for number, path in enumerate(children, 1):
            if _is_ours(path, 1):
                inside = verify(path, repair=repair)
                if not all(one.left_over for one in inside.problems):
                    affected.add(path.name)
                found.merge(inside)
            elif path.name == "experiments" and path.is_dir():
                continue
            elif path.suffix == ".keras" and (path.with_suffix(".md")).is_file():
                loose.files += 1
                _check_card(path, loose)
            elif not (path.suffix == ".md" and path.with_suffix(".keras").is_file()):
                loose.add_other(path)
            progress.advance(number)
    if repair:
        loose.problems = [_repaired(one) for one in loose.problems]
    found.merge(loose)
    found.commands += _commands(root, affected)
    return found


def _experiments(root: Path) -> Verification:
    found = Verification()
    for path in _entries(root / "experiments"):
        if path.suffix != ".yaml" or path.name.startswith("."):
            found.add_other(path)
            continue
        found.files += 1
        try:
            stem = catalog.file_stem(read_experiment(path))
        except records.DamagedError as error:
            found.add_damaged([error.damaged])
        else:
            if stem != path.stem:
                found.add(path, f"that of {stem}", "bnvuln reproduce NAME writes it again")
    return found


def _check_card(path: Path, found: Verification) -> None:
    """Check a mended model against what its card says."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        expected = _IN_CARD.search(records.read_file(path.with_suffix(".md")).decode())
        if expected and digests.of_file(path) != expected[1]:
            found.add(path, "not the model that its card is of", "bnvuln mend makes it again")


def _commands(root: Path, affected: set[str]) -> Iterator[str]:
    """Yield the commands that make again what is missing of these runs."""
    for path in sorted((root / "experiments").glob("*.yaml")):
        with contextlib.suppress(BnvulnError):
            experiment = read_experiment(path)
            if affected & {digest(identity_of(cell)) for cell in expand(experiment)}:
                yield f"{catalog.command(experiment)} --out {shlex.quote(str(root))}"


# ---------------------------------------------------------------- repair


def _one(folder: Path, repair: bool) -> Verification:
    """A run or an audit, which is changed under its lock alone."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    check = _run if records.is_run_folder(folder) or not (folder / findings.FILE).exists() else _audit
    if lease.is_locked(folder):
        return Verification(busy=[folder])
    found = check(folder)
    if (folder / lease.LOCK).exists():
        found.problems.append(_left_over(folder / lease.LOCK))
    if not repair or not found.problems:
        return found
    left_over = [one for one in found.problems if one.left_over]
    with lease.locked(folder) as held:
        if held is None:
            return Verification(busy=[folder])
        found = check(folder)
        found.problems = [*left_over, *(one for one in found.problems if not one.left_over)]
        found.problems = [_repaired(one) for one in found.problems]
    return found


def _repaired(problem: Problem) -> Problem:
    """Repair what a problem is of, as far as the file system lets us."""
    try:
        if problem.left_over:
            if problem.path.name != lease.LOCK:  # which is held now, and goes with its holder
                problem.path.unlink(missing_ok=True)
            return replace(problem, remedy="", repaired="removed")
        kept = [aside.name for path in problem.aside if (aside := records.set_aside(path))]
    except OSError as error:
        return replace(problem, remedy=f"not repaired: {records.first_line(error)}")
    return replace(problem, repaired=f"the file is now {' and '.join(kept)}" if kept else "nothing is left of it")


# ---------------------------------------------------------------- runs


def _run(folder: Path) -> Verification:
    store, own, found = FolderStore(folder.parent), folder.name, Verification()
    readers = {
        "config.yaml": store.cell,
        "training.json": store.training,
        "history.csv": store.history,
        "model.keras": store.model,
        "model.json": store.external,
    }
    for path in _entries(folder):
        if path.name in readers:
            found.files += 1
            store.attempt(functools.partial(readers[path.name], own))
        elif path.name == checkpoint.NAME:
            found.files += 1
        elif path.name == PARTS:
            _check_kept(path, ".npz", kept_parts.read, found)
        elif path.name in MEASURED_FOLDERS:
            if not path.is_dir():
                found.add(path, "a file, not a folder", MEASURE_AGAIN)
        else:
            found.add_other(path, held=True)
    for path in (path for kind in MEASURED_FOLDERS for path in _entries(folder / kind)):
        _check_measured(store, own, path, found)
    training = store.training(own)
    _check_untold_model(folder, training, found)
    _check_checkpoint(folder, training, found)
    found.add_damaged(store.damaged)
    return found


def _check_measured(store: FolderStore, own: str, path: Path, found: Verification) -> None:
    """Check a record or a measurement, with its arrays, and that arrays are not alone."""
    if path.name.startswith(".") or path not in _pair(path):
        found.add_other(path, held=True)
        return
    found.files += 1
    record, arrays = _pair(path)
    if path == arrays:
        if not record.exists():
            found.add(path, "arrays of no record", MEASURE_AGAIN)
        return
    is_whole = (store.record if path.parent.name == "records" else store.measurement)(own, path.stem)
    if is_whole and not arrays.exists() and digests.ARRAYS_KEY in json.loads(path.read_bytes()):  # not of older ones
        found.add(arrays, "not there, but its record is", MEASURE_AGAIN, path)


def _pair(path: Path) -> tuple[Path, ...]:
    """Return the record and the arrays of a measured number, of which one is nothing without the other."""
    kind, folder = path.parent.name, path.parent.parent
    if kind in ("records", "outcomes"):
        return folder / "records" / f"{path.stem}.json", folder / "outcomes" / f"{path.stem}.npz"
    return (path.with_suffix(".json"), path.with_suffix(".npz")) if kind == "measurements" else ()


def _check_untold_model(folder: Path, training: records.TrainingRecord | None, found: Verification) -> None:
    """Check a model that no training record says the digest of."""
    path = folder / "model.keras"
    if training is None and path.exists():
        try:
            records.model_sha256(path)
        except ValueError as error:
            found.add(path, f"no readable model ({records.first_line(error)})", TRAIN_AGAIN)


def _check_checkpoint(folder: Path, training: records.TrainingRecord | None, found: Verification) -> None:
    path = folder / checkpoint.NAME
    if training is not None and path.exists():
        found.problems.append(_left_over(path))
    elif path.exists():
        try:
            about, _ = checkpoint.parse(records.read_file(path))
        except (OSError, ValueError) as error:
            found.add(path, f"it cannot be read ({records.first_line(error)})", "the training starts over")
        else:
            if records.run_id(folder) not in (None, about.get("cell_id")):
                found.add(path, f"that of run {about.get('cell_id')}", "the training starts over")


def _check_kept(folder: Path, suffix: str, read: Callable[[Path], object], found: Verification) -> None:
    """Check what is kept of work that goes on: parts of an evaluation, pieces of an audit."""
    for path in (path for inside in _entries(folder) for path in _entries(inside)):
        if path.suffix != suffix or path.name.startswith("."):
            found.add_other(path, held=True)
            continue
        found.files += 1
        if read(path) is None:
            found.add(path, NOT_READABLE, COMPUTED_AGAIN)


# ---------------------------------------------------------------- audits


def _audit(folder: Path) -> Verification:
    found, ids = Verification(), list[str]()
    for path in _entries(folder):  # audit.json comes first
        if path.name == findings.FILE:
            found.files += 1
            try:
                ids = [model.id for model in findings.read(folder).models]
            except BnvulnError as error:
                found.add(path, str(error).removeprefix(f"{path}: "), AUDIT_AGAIN)
        elif example := re.fullmatch(r"examples_(\d{1,9})\.npz", path.name):
            found.files += 1
            number = int(example[1])
            try:
                findings.read_examples(path, ids[number] if number < len(ids) else None)
            except BnvulnError as error:
                found.add(path, str(error).removeprefix(f"{path}: "), AUDIT_AGAIN)
        elif path.name == pieces.FOLDER:
            _check_kept(path, ".json", pieces.read, found)
        elif path.name != "index.html":
            found.add_other(path, held=True)
    return found


# ---------------------------------------------------------------- packed stores


def _packed(root: Path) -> Verification:
    """A packed store, of which nothing can be repaired here."""
    store, found = PackedStore(root), Verification()
    files = packed_files(root)
    for cell_id in store.attempt(store.cells) or []:
        for read in (store.cell, store.training, store.history, store.model):
            store.attempt(functools.partial(read, cell_id))
        for record in store.attempt(functools.partial(store.records, cell_id)) or []:
            store.correct(cell_id, record.perturbation_id)
            store.arrays(cell_id, record.perturbation_id)
        for measurement in store.attempt(functools.partial(store.measurements, cell_id)) or []:
            store.measurement_arrays(cell_id, measurement.measurement_id)
    for path in (path for path in files if path.parent.name == "experiments"):
        store.attempt(functools.partial(read_experiment, path))
    found.files = len(files)
    found.add_damaged(store.damaged)
    _check_sums(root, files, found)
    others = (path for folder in ("", "experiments", "models") for path in _entries(root / folder))
    for path in others:
        if path not in (*files, root / SUMS, root / "experiments", root / "models"):
            found.add_other(path)
    found.problems = [replace(one, remedy=REMEDY, aside=(), left_over=False) for one in found.problems]
    return found


def _check_sums(root: Path, files: list[Path], found: Verification) -> None:
    """Check all files against SHA256SUMS, which older stores do not have."""
    path = root / SUMS
    if not path.exists():
        return
    found.files += 1
    try:
        lines = records.read_file(path).decode().splitlines()
        told = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, ValueError) as error:
        found.add(path, f"not readable ({records.first_line(error)})", REMEDY)
        return
    there = {file.relative_to(root).as_posix(): file for file in files}
    named = {problem.path for problem in found.problems}
    for name in sorted(told.keys() | there.keys()):
        file = there.get(name)
        if file in named:
            continue
        if file is None:
            found.add(path, f"it names {name[:80]!r}, which is not there", REMEDY)
        elif name not in told:
            found.add(file, f"{SUMS} does not name it", REMEDY)
        elif not file.is_file() or digests.of_file(file) != told[name]:
            found.add(file, f"its sha256 is another one than in {SUMS}", REMEDY)

"""Runs in one file, to go on with them on another machine.

The file is a ZIP of the runs' own files: records as JSON, checkpoints as safetensors, so that reading it runs no
code. An entry is called ``TABLE/KEY/FILE``, where KEY is the digest of the run without the path of its data. No
name of an entry is used as a path; files are checked in a temporary folder first.
"""

import io
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from steppe import records
from steppe.config import Run, parse_dataset
from steppe.errors import InputError
from steppe.experiments.reproduction.queue import PaperTable
from steppe.experiments.run_lock import ComparisonRun
from steppe.training.checkpoint import file, save_and_resume
from steppe.training.run import CHECKPOINT, CONFIG, RESULT, read_run
from steppe.training.trainer import METRICS, TIMING

MEGABYTES = 60.0  # of an archive, if no other size is chosen
_MANIFEST = "steppe-runs.json"
_RECORDS = (CONFIG, METRICS, TIMING, RESULT)
_FILES = "|".join(map(re.escape, (*_RECORDS, CHECKPOINT)))
_ENTRY = re.compile(rf"([0-9A-Za-z][0-9A-Za-z._-]*)/([0-9a-f]{{12}})/({_FILES}|best-[0-9]+\.safetensors)")
_RATIO = 100  # by which JSON lines shrink at most; a file of zeros, which would fill the memory, shrinks by 1,000
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


def pack(tables: Sequence[PaperTable], path: Path, command: str, megabytes: float = MEGABYTES) -> list[str]:
    """Write the runs of the tables into one file; return the names of unfinished runs that are left out.

    The records of all finished runs are in it; their weights are not. Of unfinished runs, checkpoints are added in
    the order of the training seconds that they save per byte, the most first, each if it fits. A run that is left
    out, as one with a damaged checkpoint is, starts anew.

    Raises:
        InputError: The records alone are larger than ``megabytes`` (10^6 bytes).
        RunError: The file cannot be written.
    """
    limit, buffer, left_out = megabytes * 1e6, io.BytesIO(), []
    finished, unfinished = [], []
    for table in tables:
        for job in table.jobs:
            entry = f"{table.name}/{_key(job.run)}"
            if job.finished:
                files = [job.folder / name for name in _RECORDS]
                finished.append((entry, [p for p in files if p.exists()]))  # one that failed may have no epoch
            elif (job.folder / CHECKPOINT).exists():
                try:
                    paths = _state(job)
                    seconds = float(records.read_epochs(job.folder / TIMING)[-1]["seconds"])
                    worth = seconds / sum(p.stat().st_size for p in paths)
                except (InputError, LookupError, OSError):
                    left_out.append(f"{job.name} (its checkpoint is damaged)")
                    continue
                unfinished.append((worth, job.name, entry, paths))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_MANIFEST, f'{{"format": {records.FORMAT}}}\n')
        archive.comment = command.encode()[:1000]

        def size(paths: Iterable[Path] = ()) -> float:
            # of each entry the directory at the end has its name and about 50 bytes, the data as many again
            more = sum(p.stat().st_size + 300 for p in paths)
            return buffer.tell() + more + 150 * len(archive.namelist()) + 1100

        def add(entry: str, paths: Iterable[Path]) -> None:
            for p in paths:
                # weights do not shrink
                kind = zipfile.ZIP_STORED if p.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
                archive.write(p, f"{entry}/{p.name}", kind)

        for entry, paths in finished:
            add(entry, paths)
        if size() > limit:
            raise InputError(
                f"megabytes is {megabytes:g} and the records of finished runs take {size() / 1e6:.1f}; give more"
            )
        for _, name, entry, paths in sorted(unfinished, key=lambda one: -one[0]):
            if size(paths) > limit:
                left_out.append(f"{name} ({sum(p.stat().st_size for p in paths) / 1e6:.1f} MB do not fit)")
            else:
                add(entry, paths)
    records.make_folder(path.parent)
    records.write_text(path, buffer.getvalue())
    return left_out


def unpack(path: Path, tables: Sequence[PaperTable]) -> tuple[int, int]:
    """Write an archive's runs into the folders of the tables; return how many there are, and how many others.

    A run that is finished in its folder, or is further there than in the archive, is left as it is. A run whose
    data have another path on this machine gets the name and the path of this machine; its training goes on with
    the same bits. Nothing is written unless the whole archive is sound.

    Raises:
        InputError: The file is missing, damaged, no archive of `pack`, or has none of the tables' runs.
        RunError: The folder cannot be written.
    """
    entries, comment = _read(path)
    jobs = {(table.name, _key(job.run)): job for table in tables for job in table.jobs}
    own = {jobs[key]: files for key, files in entries.items() if key in jobs}
    if entries and not own:
        hint = f"; it was packed by: {comment}" if comment else ""
        raise InputError(f"archive {path} has none of the runs of this command; choose the same tables{hint}")
    for table in tables:
        records.make_folder(table.out)
    with tempfile.TemporaryDirectory(dir=tables[0].out.parent, prefix=".unpack-") as temporary:
        folders = {}
        for job, files in own.items():
            folders[job] = Path(temporary) / job.folder.parents[1].name / job.folder.name
            folders[job].mkdir(parents=True)
            for name, content in files.items():
                (folders[job] / name).write_bytes(content)
            try:
                _adopt(job, folders[job])
            except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
                reason = str(error).replace(f"{folders[job]}/", "").partition(";")[0]
                raise InputError(f"archive {path} is damaged: {job.name}: {reason}; pack it again") from None
        count = 0
        for job, folder in folders.items():
            if _progress(folder) > _progress(job.folder):
                shutil.rmtree(job.folder, ignore_errors=True)
                records.make_folder(job.folder.parent)
                folder.replace(job.folder)
                count += 1
    return count, len(entries) - len(own)


def _read(path: Path) -> tuple[dict[tuple[str, str], dict[str, bytes]], str]:
    """Return the files of each run by the table and the key of the run, and the command that packed them."""
    remedy = "give a file that steppe reproduce --pack wrote"
    entries: dict[tuple[str, str], dict[str, bytes]] = {}
    if not path.is_file():
        raise InputError(f"from is {str(path)!r}, and there is no such file; {remedy}")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if _MANIFEST not in archive.namelist():
                raise InputError(f"{path} is no archive of runs; {remedy}")
            if len({info.filename for info in infos}) < len(infos):
                raise InputError(f"archive {path} has an entry twice; {remedy}")
            for info in infos:
                match = _ENTRY.fullmatch(info.filename)
                if match is None and info.filename != _MANIFEST:
                    raise InputError(
                        f"archive {path} has the entry {info.filename!r:.80}, no file of a run; {remedy}"
                    )
                if info.file_size > _RATIO * info.compress_size + 1000:
                    raise InputError(
                        f"archive {path} has the entry {info.filename!r}, too large for a file of a run; {remedy}"
                    )
                if match:
                    entries.setdefault((match[1], match[2]), {})[match[3]] = archive.read(info)
            comment = archive.comment.decode("utf-8", "replace")
    except InputError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"archive {path} is damaged or no archive ({reason}); {remedy}") from None
    return entries, " ".join("".join(c if c.isprintable() else " " for c in comment).split())


def _key(run: Run) -> str:
    """Return the digest of a run without the path of its data."""
    name, path, _ = parse_dataset(run.dataset)
    return replace(run, dataset=name).digest() if path else run.digest()


def _state(job: ComparisonRun) -> list[Path]:
    """Return the files with which an unfinished run goes on; raises InputError if its checkpoints are damaged."""
    save_and_resume.verify(job.folder)
    best = file.read(job.folder / CHECKPOINT).data["best"]["epoch"]
    names = (CONFIG, METRICS, TIMING, CHECKPOINT, f"best-{best}.safetensors")
    return [job.folder / name for name in names]


def _adopt(job: ComparisonRun, folder: Path) -> None:
    """Check the files of a run that was trained elsewhere, and give them its name and path of the data."""
    packed = read_run(folder)
    config = records.read_json(folder / CONFIG)
    config["dataset"] = job.run.dataset
    name, place, _ = parse_dataset(job.run.dataset)
    if place and "path" in (config.get("images") or {}):
        config["images"]["path"] = str(Path(place).expanduser().absolute())
    records.write_json(folder / CONFIG, config)
    if read_run(folder).digest() != job.folder.name:
        raise InputError(f"its configuration is that of another run on {name}")
    epochs = len(records.read_epochs(folder / METRICS))
    records.read_epochs(folder / TIMING)
    if (result := records.read_result(folder / RESULT)) is not None:
        if result["epochs"] != epochs and result["status"] == "ok":
            raise InputError(f"{RESULT} has {result['epochs']} epochs and {METRICS} {epochs}")
        for path in folder.glob("*.safetensors"):  # a finished run needs none
            path.unlink()
        return
    saved = file.read(folder / CHECKPOINT)
    if saved.data["digest"] != packed.digest():
        raise InputError(f"its checkpoint belongs to run {saved.data['digest']}")
    if saved.data["epoch"] > epochs:
        raise InputError(f"its checkpoint is of epoch {saved.data['epoch']} and {METRICS} has {epochs}")
    file.read(folder / f"best-{saved.data['best']['epoch']}.safetensors")
    if packed.digest() != job.folder.name:
        file.write(folder / CHECKPOINT, file.Checkpoint(saved.tensors, saved.data | {"digest": job.folder.name}))


def _progress(folder: Path) -> float:
    """Return the epoch of a run's checkpoint, infinity if it is finished, -1 if there is neither."""
    if (folder / RESULT).exists():
        return float("inf")
    if (folder / CHECKPOINT).exists():
        with suppress(InputError, KeyError):
            return float(file.opened(folder / CHECKPOINT)[0].data["epoch"])
    return -1

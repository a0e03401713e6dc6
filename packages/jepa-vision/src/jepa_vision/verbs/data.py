"""`jepa vision data check|build|fetch`: from files to a corpus."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Int32

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError, DataError
from jepa_core.progress import Progress
from jepa_core.report.table import Cell, Table
from jepa_vision.data.build import CorpusConfig, build
from jepa_vision.data.fetch import fetch
from jepa_vision.data.folders import find_images, find_scenes
from jepa_vision.data.images import ImageReadError, ReadOptions
from jepa_vision.data.layouts import SceneFolder
from jepa_vision.data.listing import Listing
from jepa_vision.data.transforms import Sums

# Classes and problems are shown this often; a note says how many there are.
_SHOWN = 20
# A corpus saves decoding where files are this many times the crop.
_LARGE = 3


@dataclass(frozen=True)
class Check:
    """Read every image as a build would and say what is there; nothing is written.

    Pictures with label pictures beside them have their labels checked too. Exits with 2 when a file
    cannot be read.
    """

    input: tyro.conf.Positional[Path]
    """A folder of images, of classes, or of splits and classes; a zip archive of one; a list of
    files (.txt); or one image."""
    split: str = ""
    """train, val or test, where there are splits; all of them by default."""
    subset: Path | None = None
    """A text file that lists which images to take."""
    crop: Annotated[int, Range(ge=1)] = 224
    """Side of the crops that the images are meant for (pixels)."""
    classes: Annotated[int, Range(ge=1)] | None = None
    """Number of classes of label pictures of your own."""
    ignore_index: int | None = None
    """Their value for pixels without a class; 255 by default."""
    read: ReadOptions = ReadOptions()
    """Reading."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        listing = find_images(self.input, split=self.split, subset=self.subset)
        found = _read_all(listing, self.read)
        rows: list[list[Cell]] = [
            ["readable", len(found.sizes)],
            ["unreadable", len(found.problems)],
            ["classes", len(listing.classes) or None],
        ]
        rows += [
            [f"split {name}", n] for name, n in sorted(Counter(listing.splits).items()) if name
        ]
        rows += [[kind, n] for kind, n in found.kinds.most_common()]
        rows += [[f"other files, {suffix}", n] for suffix, n in listing.ignored[:_SHOWN]]
        Table("images", ("what", "count"), rows).print()
        if found.sizes:
            _sizes_table(np.array(found.sizes, np.int32)).print()
            _channels_table(found.sums).print()
        if listing.labels is not None:
            _classes_table(listing).print()
        scenes = self._scenes()
        if scenes is not None:
            found.problems += _check_labels(scenes)
        if found.problems:
            more = len(found.problems) - _SHOWN
            notes = (f"{more} more are not shown.",) if more > 0 else ()
            Table("what cannot be read", ("file", "reason"), found.problems[:_SHOWN], notes).print()
        for line in self._suggestions(listing, found, scenes):
            print(f"- {line}")
        if found.problems:
            raise DataError(
                f"{len(found.problems)} files cannot be read",
                where=self.input,
                remedy="mend them, or build with --on-error skip, which lists them",
            )

    def _scenes(self) -> SceneFolder | None:
        if self.subset is not None or (self.input.is_file() and self.input.suffix != ".zip"):
            return None
        try:
            return find_scenes(
                self.input, split=self.split, classes=self.classes, ignore_index=self.ignore_index
            )
        except ConfigError as error:
            print(f"- There are label pictures; {error.what}: {error.remedy}.")
            return None
        except DataError:
            return None

    def _suggestions(
        self, listing: Listing, found: _Found, scenes: SceneFolder | None
    ) -> list[str]:
        """What a person may want to do about what was found."""
        out = [f"{n} files {note}." for note, n in found.notes.most_common()]
        if any("16 bits" in note for note in found.notes):
            out.append("If 16-bit images come out dark, try --stretch percentile.")
        if listing.labels is None and scenes is None:
            out.append("No classes: fit for pre-training and embedding, not for a probe.")
        if len(listing.classes) == 1:
            out.append("One class only: a probe needs two.")
        if scenes is not None and scenes.unpaired:
            out.append(f"{scenes.unpaired} pictures have no label picture.")
        short = np.array(found.sizes, np.int32).reshape(-1, 2).min(1, initial=1 << 30)
        if tiny := int((short < self.crop / 4).sum()):
            out.append(
                f"{tiny} images have a short side below {self.crop // 4}: a crop of {self.crop} "
                "enlarges them more than fourfold; take a smaller one, or leave them out."
            )
        if len(short) and np.median(short) >= _LARGE * self.crop:
            out.append(
                f"Most images are {_LARGE} times as large as the crop or more: a corpus "
                f"(jepa vision data build --short-side {self.crop * 8 // 7}) saves decoding "
                "them each time."
            )
        if found.sums is not None and len(found.sums.total) != 3:
            out.append(
                f"{len(found.sums.total)} channels: pre-training measures their mean and standard "
                "deviation, as above."
            )
        return out


@dataclass
class _Found:
    """What reading all images brought to light."""

    sizes: list[tuple[int, int]]
    kinds: Counter[str]
    notes: Counter[str]
    problems: list[list[Cell]]
    sums: Sums | None = None


def _read_all(listing: Listing, options: ReadOptions) -> _Found:
    found = _Found([], Counter(), Counter(), [])
    with Progress("reading", len(listing)) as progress:
        for i, name in enumerate(listing.names):
            progress.update(i + 1)
            try:
                pixels, kind, notes = listing.read(i, options)
            except ImageReadError as error:
                found.problems.append([name, error.reason])
                continue
            if found.sums is None:
                found.sums = Sums(pixels.shape[2])
            elif pixels.shape[2] != len(found.sums.total):
                reason = f"{pixels.shape[2]} channels, the first has {len(found.sums.total)}"
                found.problems.append([name, reason])
                continue
            found.sums.add(pixels)
            found.sizes.append((pixels.shape[0], pixels.shape[1]))
            found.kinds[kind] += 1
            found.notes.update(notes)
    return found


def _check_labels(scenes: SceneFolder) -> list[list[Cell]]:
    """Show the shares of the classes; what is wrong with label pictures."""
    counts: Counter[int] = Counter()
    problems: list[list[Cell]] = []
    with Progress("reading labels", len(scenes)) as progress:
        for i, pair in enumerate(scenes.pairs):
            progress.update(i + 1)
            try:
                values, n = np.unique(scenes.label(i), return_counts=True)
            except ImageReadError as error:
                problems.append([pair.label, error.reason])
                continue
            counts.update(dict(zip(values.tolist(), n.tolist(), strict=True)))
    total = sum(counts.values()) or 1
    names = dict(enumerate(scenes.classes)) | {scenes.ignore_index: "none"}
    rows: list[list[Cell]] = [
        [names[value], f"{n / total:.4f}"] for value, n in sorted(counts.items())
    ]
    title = f"labels of {len(scenes)} pictures ({scenes.layout})"
    Table(title, ("class", "share of pixels"), rows).print()
    return problems


def _sizes_table(sizes: Int32[np.ndarray, "images 2"]) -> Table:
    columns = ("side", "least", "5 %", "median", "95 %", "largest")
    rows: list[list[Cell]] = []
    sides = {"height": sizes[:, 0], "width": sizes[:, 1], "short side": sizes.min(1)}
    for name, values in sides.items():
        quantiles = np.percentile(values, (0, 5, 50, 95, 100))
        rows.append([name, *(round(float(value)) for value in quantiles)])
    return Table("sizes in pixels", columns, rows)


def _channels_table(sums: Sums | None) -> Table:
    assert sums is not None, "there are readable images"
    rows: list[list[Cell]] = [
        [channel, f"{mean:.4g}", f"{std:.4g}"]
        for channel, (mean, std) in enumerate(zip(*sums.statistics(), strict=True))
    ]
    return Table("values (of 8 bits: 0..1)", ("channel", "mean", "standard deviation"), rows)


def _classes_table(listing: Listing) -> Table:
    assert listing.labels is not None, "asked for where there are labels"
    splits: Sequence[str] = sorted(set(listing.splits))
    counts = Counter(zip(listing.labels.tolist(), listing.splits, strict=True))
    rows: list[list[Cell]] = [
        [name, *(counts[i, split] for split in splits)] for i, name in enumerate(listing.classes)
    ]
    more = len(rows) - _SHOWN
    notes = (f"{more} more classes are not shown.",) if more > 0 else ()
    columns = ("class", *(split or "images" for split in splits))
    return Table("images of each class", columns, rows[:_SHOWN], notes)


@dataclass(frozen=True)
class Build:
    """Build a corpus: images resized to a short side, memory-mapped; resumable.

    Files that cannot be read are errors, or are left out and listed in skipped.csv
    (--on-error skip). A build that was stopped goes on with the same command and --resume.
    """

    input: tyro.conf.Positional[Path]
    """A folder or another place of images; see `jepa vision data check --help`."""
    out: Path
    """The corpus folder."""
    split: str = ""
    """train, val or test, where there are splits; all of them by default."""
    subset: Path | None = None
    """A text file that lists which images to take."""
    jobs: Annotated[int, Range(ge=1)] = 1
    """Processes; the corpus does not depend on their number."""
    resume: bool = False
    """Go on with a build that was stopped."""
    overwrite: bool = False
    """Replace the corpus in the folder."""
    config: CorpusConfig = CorpusConfig()
    """What the corpus is made of."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        listing = find_images(self.input, split=self.split, subset=self.subset)
        done = 0
        with Progress("building", len(listing)) as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the notes count them

            def advance(images: int) -> None:
                nonlocal done
                done += images
                progress.update(done)

            report = build(
                listing,
                self.out,
                self.config,
                jobs=self.jobs,
                resume=self.resume,
                overwrite=self.overwrite,
                progress=advance,
            )
        print(f"{self.out}: {report.kept} images")
        for note, n in report.notes.items():
            print(f"{n} files {note}")
        if report.skipped:
            print(f"{report.skipped} files left out, see {self.out / 'skipped.csv'}")


@dataclass(frozen=True)
class Fetch:
    """Download a public data set: caltech101, oxford-pet, imagenette or cifar10.

    One that is there is kept, and a download that was stopped goes on. Mind the terms of the data
    set, and cite it.
    """

    name: tyro.conf.Positional[str]
    """Which data set."""
    out: Path
    """Folder to put the files into, in the data set's own layout."""
    base_url: str | None = None
    """A mirror: a folder that holds the archives under their own names."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        report = fetch(self.name, self.out, base_url=self.base_url)
        how = f"{report.received / 1e6:,.1f} MB downloaded" if report.fetched else "was there"
        print(f"{report.folder}: {how}")

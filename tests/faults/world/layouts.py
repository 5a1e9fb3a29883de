"""Image folders as people have them: parts, classes, nesting, tables, packing and other files, chosen at random.

The colour of an image says which class, part and number it has.
"""

import csv
import io
import random
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from PIL import Image

PARTS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst"),
    "eval": ("eval", "evaluation"),
}
# how data sets are divided, and what each part serves as
DIVISIONS: tuple[dict[str, str], ...] = (
    {},
    {},
    {"train": "train"},
    {"train": "train", "test": "test"},
    {"train": "train", "test": "test"},
    {"train": "train", "val": "test"},
    {"train": "train", "eval": "test"},
    {"train": "train", "val": "val", "test": "test"},
    {"train": "train", "test": "test", "eval": "val"},
    {"train": "train", "val": "val", "eval": "test"},
)
FILLERS = ("", "", "", "set", "data", "images", "imgs", "dataset", "split", "folder")
PREFIXES = ("", "", "", "", "seg_", "asl alphabet ", "chest-xray-", "01_")
CASES = (str.lower, str.lower, str.upper, str.title, str.capitalize)
CLASSES = (
    "cat", "dog", "Bird", "hot dog", "été", "n01440764", "0", "10", "train_station", "restaurant", "contest",
    "T-shirt", "NORMAL", "no_class", "猫", "strain", "invalid",
)  # fmt: skip
ABOVE = ("", "", "", "archive/", "archive/dataset/", "my data (1)/", "photos/images/")
KINDS = ("PNG", "PNG", "JPEG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
ENDINGS = {
    "PNG": (".png", ".PNG", ".jpg", ""),
    "JPEG": (".jpg", ".JPEG", ".jfif", ".jpe", ".JPG", ""),
    "WEBP": (".webp", ".WebP"),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".TIFF"),
    "GIF": (".gif",),
}
SYSTEM = (
    ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", "__MACOSX/._1.jpg", "@eaDir/SYNO@1.png",
    ".ipynb_checkpoints/1.png", "lost+found/1", "$RECYCLE.BIN/1.png", "#recycle/cat/1.png", ".git/HEAD",
    "System Volume Information/x", ".Trash-1000/files/1.png", "#snapshot/1.png",
)  # fmt: skip
OTHERS = ("README.md", "LICENSE", "classes.txt", "boxes.xml", "model.pth", "a.json", "films.mp4", "sheet.xlsx")
UNREADABLE = (b"", b"<html>404</html>", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
ID_COLUMNS = ("id", "filename", "image", "Image ID", "file", "path", "name")
LABEL_COLUMNS = ("label", "Label", "class", "category", "target", "breed", "labels")
SPLIT_COLUMNS = ("split", "Subset", "partition", "set", "usage")
SPOILED = (
    "part twice", "three for two", "classes around parts", "one class", "empty class", "class only in training",
    "unreadable", "two label columns", "label differs",
)  # fmt: skip
UNUSED = "unused"


@dataclass
class Layout:
    """Files to write and what they mean; ``label`` has the (part, class) that each image should get."""

    label: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    hard: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    colour: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    system: int = 0
    others: int = 0
    skipped: int = 0
    skip_corrupt: bool = False
    refused: bool = False
    chosen: list[str] = field(default_factory=list)


def spelled(word: str, r: random.Random, prefix: str) -> str:
    filler = r.choice(FILLERS)
    text = f"{prefix}{word}{r.choice(('', '_', '-', ' ')) if filler else ''}{filler}"
    return str(r.choice(CASES)(text)) + r.choice(("", "", "", "1", "_2017"))


def image(colour: tuple[int, int, int], kind: str) -> bytes:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, kind, **options)
    return file.getvalue()


class Generator:
    """Draws one layout."""

    def __init__(self, r: random.Random):
        self.r, self.layout = r, Layout()
        self.spoiled = r.choice(SPOILED) if r.random() < 0.2 else ""
        self.serves = r.choice(DIVISIONS)
        if self.spoiled in ("part twice", "classes around parts", "class only in training"):
            self.serves = r.choice(DIVISIONS[3:])
        if self.spoiled == "three for two":
            self.serves = {"train": "train", "val": "val", "test": "test", "eval": "val"}
        by_table = r.random() < 0.3
        self.by_table = by_table if not self.spoiled else self.spoiled in ("two label columns", "label differs")
        self.classes = r.sample(CLASSES, r.choice((2, 2, 3, 4)))
        self.above = r.choice(ABOVE)
        self.prefix = r.choice(PREFIXES) if len(self.serves) > 1 else ""
        self.names = {part: spelled(r.choice(PARTS[part]), r, self.prefix) for part in self.serves}

    def drawn(self) -> Layout:
        layout, r = self.layout, self.r
        layout.chosen = [f"{self.above}{'|'.join(self.names.values()) or 'undivided'}"]
        self.with_table() if self.by_table else self.with_folders()
        if self.spoiled:
            layout.chosen.append(self.spoiled)
            layout.refused = True
            getattr(self, "spoil_" + self.spoiled.replace(" ", "_"), lambda: None)()
        elif not self.by_table:
            self.add_links()
            self.add_unlabelled()
        for _ in range(r.choice((0, 0, 1, 2, 4))):
            self.add_system()
        for name in r.sample(OTHERS, r.choice((0, 0, 1, 3))):
            layout.files[f"{self.place()}{name}"] = b"text"
            layout.others += 1
        if not self.spoiled and not self.by_table and r.random() < 0.2:
            self.spoil_unreadable()
            layout.skip_corrupt, layout.skipped = True, 1
            layout.chosen.append("unreadable, to be skipped")
        return layout

    def add(self, folder: str, part: str, name: str | None) -> str:
        """Add an image of a class, or without one, and return its path."""
        r, number = self.r, len(self.layout.colour)
        kind = r.choice(KINDS)
        stem = f"{r.choice(('', 'IMG_', 'img ', 'é'))}{number:03d}"
        path = f"{folder}{stem}{r.choice(ENDINGS[kind])}"
        kinds = [*PARTS, UNUSED]
        colour = (30 + 60 * self.classes.index(name) if name else 0, 20 + 50 * kinds.index(part), 3 * number)
        self.layout.files[path] = image(colour, kind)
        self.layout.colour[path] = colour
        served = self.serves.get(part, "") if "test" in self.serves.values() else "any"
        self.layout.label[path] = (served, name) if name else None
        return path

    def count(self, part: str) -> int:
        return self.r.choice((4, 5, 6) if part in ("train", "") else (2, 3))

    def with_folders(self) -> None:
        r = self.r
        between, below = r.choice(("", "", "", "images/", "same", "data/x/")), r.choice(("", "", "", "images/"))
        for part in self.names or {"": ""}:
            top = self.names.get(part, "")
            inner = f"{top}/" if between == "same" and top else "" if between == "same" or not top else between
            for name in self.classes:
                folder = f"{self.above}{top + '/' if top else ''}{inner}{name}/{below}"
                for _ in range(self.count(part)):
                    self.add(folder, part or "train", name)
        self.layout.chosen.append(f"folders {between}CLASS/{below}")

    def with_table(self) -> None:
        """Label flat images: by one table or one per part; parts are folders, a column or the tables' names."""
        r = self.r
        ways = ["folders", "column", "tables"] if len(self.serves) > 1 else ["none"]
        way = r.choice(ways)
        folder = r.choice(("images", "photos", "jpg"))
        rows: dict[str, list[tuple[str, str]]] = {}
        for part in self.names or {"": ""}:
            inside = self.names[part] if way == "folders" else folder
            for name in self.classes:
                for _ in range(self.count(part)):
                    path = self.add(f"{self.above}{inside}/", part or "train", name)
                    rows.setdefault(part, []).append((path, name))
        if way == "none":
            self.serves = {}
            for path, label in self.layout.label.items():
                self.layout.label[path] = ("any", label[1]) if label else None
        form = r.choice(("stem", "name", "path"))
        tables = rows if way == "tables" else {"": [row for part in rows.values() for row in part]}
        part_of_image = {path: part for part, some in rows.items() for path, _ in some}
        titles = (r.choice(ID_COLUMNS), r.choice(LABEL_COLUMNS), r.choice(SPLIT_COLUMNS))
        for part, some in tables.items():
            lines = [[titles[0], titles[1], *([titles[2]] if way == "column" else [])]]
            for path, name in some:
                split = [self.names[part_of_image[path]]] if way == "column" else []
                lines.append([_reference(path, form), name, *split])
            name = f"{self.names[part]}.csv" if part else r.choice(("labels.csv", "metadata.csv", "data.CSV"))
            self.layout.files[f"{self.above}{name}"] = self.table(lines)
        self.layout.chosen.append(f"table, parts by {way}, files by {form}")

    def table(self, lines: list[list[str]]) -> bytes:
        r = self.r
        for n in range(r.choice((0, 0, 1, 2))):
            lines = [[*line, f"column{n}" if i == 0 else str(r.random())] for i, line in enumerate(lines)]
        if self.spoiled == "two label columns":
            known = {line.lower() for line in lines[0]}
            extra = next(title for title in ("species", "diagnosis") if title not in known)
            lines = [[*line, extra if i == 0 else r.choice("ab")] for i, line in enumerate(lines)]
        if self.spoiled == "label differs":
            other = next(name for name in self.classes if name != lines[1][1])
            lines = [*lines, [lines[1][0], other, *lines[1][2:]]]
        order = list(range(len(lines[0])))
        r.shuffle(order)
        first, *rest = [[line[i] for i in order] for line in lines]
        r.shuffle(rest)
        text = io.StringIO()
        csv.writer(text, delimiter=r.choice(",,;\t"), lineterminator=r.choice(("\n", "\r\n"))).writerows(
            [first, *rest]
        )
        return text.getvalue().encode(r.choice(("utf-8", "utf-8", "utf-8-sig")))

    def place(self) -> str:
        """Return a folder that has images in it, or the top one."""
        folders = sorted({str(PurePosixPath(path).parent) + "/" for path in self.layout.colour})
        return self.r.choice([self.above, *folders])

    def add_system(self) -> None:
        place, name = self.place(), self.r.choice(SYSTEM)
        top = place + name.split("/")[0]
        if not any(path == top or path.startswith(f"{top}/") for path in self.layout.files):
            self.layout.files[place + name] = image((1, 2, 3), "PNG")
            self.layout.system += 1

    def add_links(self) -> None:
        """Link to images, symbolically and not: each link is an image more."""
        for kind in (self.layout.links, self.layout.hard):
            prefix = "link" if kind is self.layout.links else "hard"
            for path in self.r.sample(sorted(self.layout.colour), self.r.choice((0, 0, 0, 1, 2))):
                link = str(PurePosixPath(path).with_name(f"{prefix}{len(kind)}.png"))
                kind[link] = path
                self.layout.colour[link], self.layout.label[link] = (
                    self.layout.colour[path],
                    self.layout.label[path],
                )

    def add_unlabelled(self) -> None:
        """Add test images without classes, as competitions have them, to a data set without test images."""
        if set(self.serves) == {"train", "val"} and self.r.random() < 0.5:
            folder = spelled("test", self.r, self.prefix)
            for _ in range(4):
                self.add(f"{self.above}{folder}/", UNUSED, None)
            self.layout.chosen.append("unlabelled test images")

    def spoil_part_twice(self) -> None:
        part = self.r.choice(list(self.names))
        word = {"train": "trn", "val": "dev", "test": "tst", "eval": "evaluation"}[part]
        name = f"{self.prefix}{word}{self.r.choice(('_images_2', ' Set 9', '-split3'))}"
        for label in self.classes:
            self.add(f"{self.above}{name}/{label}/", part, label)

    def spoil_classes_around_parts(self) -> None:
        self._clear()
        for label in self.classes:
            for part in self.names:
                for _ in range(3):
                    self.add(f"{self.above}{label}/{self.r.choice(PARTS[part][:1])}/", part, label)

    def spoil_one_class(self) -> None:
        for path, label in list(self.layout.label.items()):
            if label and label[1] != self.classes[0]:
                del self.layout.files[path], self.layout.colour[path], self.layout.label[path]

    def spoil_empty_class(self) -> None:
        path = PurePosixPath(next(path for path, label in self.layout.label.items() if label))
        level = next(parent for parent in path.parents if parent.name in self.classes)
        self.layout.folders.append(str(level.with_name("empty")))

    def spoil_class_only_in_training(self) -> None:
        part = next(part for part, served in self.serves.items() if served == "test")
        for path in [p for p in self.layout.label if f"{self.above}{self.names[part]}/" in p]:
            if f"/{self.classes[0]}/" in path:
                del self.layout.files[path], self.layout.colour[path], self.layout.label[path]

    def spoil_unreadable(self) -> None:
        path = PurePosixPath(self.r.choice(sorted(p for p, label in self.layout.label.items() if label)))
        self.layout.files[str(path.with_name("broken.jpg"))] = self.r.choice(UNREADABLE)

    def _clear(self) -> None:
        for path in self.layout.colour:
            del self.layout.files[path]
        self.layout.colour, self.layout.label = {}, {}


def _reference(path: str, form: str) -> str:
    name = PurePosixPath(path)
    return name.stem if form == "stem" else name.name if form == "name" else f"{name.parent.name}/{name.name}"

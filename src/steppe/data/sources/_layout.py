"""Which part and class each image of a folder has: by the folders around it, or by a table beside it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from steppe.data.sources._part_names import folded, part_of
from steppe.data.sources._table_files import ImageNames, Table, read_tables
from steppe.data.sources._tables import contradiction, read_labels, read_parts
from steppe.data.sources._thumbnails import thumbnails
from steppe.data.sources.listing import TABLES, Listing
from steppe.errors import InputError

Label = tuple[str, str]  # part (train, val or test) and class of an image
_Folder = tuple[str, ...]
_SHARD_TOKENS = {"image", "images", "img", "imgs", "part"}
_ANNOTATIONS = {"annotation", "annotations", "segmentation", "segmentations", "trimaps", "groundtruth"}
_IMAGES = {"image", "images", "img", "imgs", "jpegimages"}
_MASKS = {"mask", "masks", "label", "labels", "gt"}


@dataclass
class ImageLayout:
    """The ``label`` of each image that has one; ``notes`` say what is not used.

    ``classes`` has the label of each class folder. ``origin`` says where the images of each part come from.
    """

    label: dict[str, Label] = field(default_factory=dict)
    classes: dict[str, Label] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_layout(
    path: Path, names: Sequence[str], listing: Listing, contents: Mapping[str, bytes], table: str | None = None
) -> ImageLayout:
    """Return the layout of the images ``names`` of a folder or archive; ``contents`` has its tables.

    Parts are folders whose names have one of the usual words (see `part_of`), anywhere below single folders that
    contain everything; classes are the folders in them. Images without class folders are labelled by tables, which
    may also divide class folders into parts. If a ``table`` is named, its labels count instead of class folders.
    ``val`` serves as the test images if there is no ``test``; ``eval`` is the one of the two that is missing.

    Raises InputError if folders or tables can be understood in two ways, or no image is labelled for training.
    """
    copies = thumbnails(names)
    copied = {image for images in copies.values() for image in images}
    names = [name for name in names if name not in copied]
    tree = _Tree(path, names, listing, set(copies))
    layout = ImageLayout()
    layout.notes += [f"{len(i)} thumbnail{'s' * (len(i) > 1)} (in {folder})" for folder, i in copies.items()]
    image_names = ImageNames(names if contents else ())
    tables = read_tables(contents, image_names)
    base = tree.descend((), stop_at_parts=True)
    tops = _parts(tree, base) or {"": base}
    training = tops.get("train", base)
    train_classes = {folder[-1] for folder in tree.class_folders(training)}
    class_folders: dict[str, list[_Folder]] = {}
    undivided: dict[str, str | None] = {}
    for part, top in tops.items():
        folders = tree.class_folders(top, frozenset() if top == training else train_classes)
        if table is not None or (tables and _are_shards(folders)):
            undivided |= dict.fromkeys(tree.names(top), part or None)
            continue
        if tables and (masks := _annotations(folders)):  # lists may label the images in the other folders
            images = (name for folder in {*folders} - {*masks} for name in tree.names(folder))
            undivided |= dict.fromkeys(images, part or None)
        if {*map(folded, train_classes)} & {folded(folder[-1]) for folder in folders}:
            class_folders[part] = folders
        if len(folders) < 2 or part not in class_folders:
            undivided |= dict.fromkeys(tree.names(top), part or None)
    labelling = tables if table is None else [t for t in tables if t.name == table]
    by_table, unused_rows = read_labels(str(path), labelling, image_names, undivided)
    for part, folders in class_folders.items():
        if by_table.keys() & tree.names(tops[part]):
            continue
        tree.refuse_classes_within(folders)
        _refuse_annotations(path, folders)
        for folder in folders:
            layout.classes["/".join(folder)] = (part or "train", folder[-1])
            layout.label |= dict.fromkeys(tree.names(folder), (part or "train", folder[-1]))
    training_classes = {name: label for name, (part, label) in layout.label.items() if part == "train"}
    if layout.label and (match := contradiction(str(path), tables, image_names, training_classes)):
        other, row = match
        by_tables = f"give folder:{path / other.name}" if path.is_dir() else "pack one without class folders"
        raise InputError(
            f"{path} has {row.image} in the class folder {training_classes[row.image]!r}, and {other.name} labels "
            f"it {row.label!r}; rename {other.name} to {other.name}.old to train on the folders, or {by_tables} "
            "to train on the table"
        )
    lists: list[str] = []
    layout.label |= {name: (part or "train", label) for name, (part, label) in by_table.items()}
    if "" in tops and all(part is None for part, _ in by_table.values()):
        classes = {name: label for name, (_, label) in layout.label.items()}
        divided, lists = read_parts(str(path), labelling, image_names, classes)
        if lists:
            layout.label = {name: (part, classes[name]) for name, part in divided.items()}
    _name_parts(path, layout, {part: f"the folder {top[-1]}" for part, top in tops.items() if part}, lists)
    used = {t.name for t in tables if t.name in unused_rows or t.name in lists}
    layout.notes += [
        f"{n} row{'s' * (n > 1)} of {name} without an image or a label" for name, n in unused_rows.items() if n
    ]
    layout.notes += _unused_tables(contents, tables, used, image_names, listing)
    unused = Counter("/".join(tree.images[name]) or "its top" for name in names if name not in layout.label)
    if unused:
        places = ", ".join(folder for folder, _ in unused.most_common(3)) + ", ..." * (len(unused) > 3)
        without = "in no list of parts" if lists else "without a class"
        layout.notes.append(f"{unused.total()} image{'s' * (unused.total() > 1)} {without} (in {places})")
    return layout


def _unused_tables(
    contents: Mapping[str, bytes], tables: Sequence[Table], used: Set[str], names: ImageNames, listing: Listing
) -> list[str]:
    """Return notes on the tables that are not used; texts that name no image are counted as other files."""
    read = {*used}.union(*(t.joined for t in tables if t.name in used))
    naming = {t.name for t in tables if t.is_text and t.names_any(names)}
    notes, lists = [], []
    for name in sorted({*contents} - read):
        if name.lower().endswith(TABLES):
            notes.append(f"the table {name}")
        elif name in naming:
            lists.append(name)
        else:
            listing.other[f"{PurePosixPath(name).suffix.lower()} file"] += 1
    if lists:
        more = f" and {len(lists) - 2} more" if len(lists) > 2 else ""
        notes.append(f"the list{'s' * (len(lists) > 1)} {', '.join(lists[:2])}{more}")
    return notes


class _Tree:
    """Folders with the images in and below them."""

    def __init__(self, path: Path, names: Sequence[str], listing: Listing, left_out: Set[str]):
        self.path = path
        self.images = {name: tuple(name.split("/")[:-1]) for name in names}
        self.filled = {PurePosixPath(f).parts for f in listing.filled} | set(self.images.values())
        self.below: dict[_Folder, list[str]] = defaultdict(list)
        for name, parents in self.images.items():
            for i in range(len(parents) + 1):
                self.below[parents[:i]].append(name)
        texts = {PurePosixPath(f).parts for f in listing.filled - listing.foreign}  # no classes
        folders = {PurePosixPath(f).parts for f in listing.folders if f not in left_out} - texts | set(self.below)
        self.inside: dict[_Folder, list[_Folder]] = defaultdict(list)
        for folder in sorted(folders - {()}):
            self.inside[folder[:-1]].append(folder)

    def names(self, folder: _Folder) -> list[str]:
        """Return the images in and below a folder."""
        return self.below.get(folder, [])

    def sub_folders(self, folder: _Folder) -> list[_Folder]:
        """Return the sub-folders that have images."""
        return [sub for sub in self.inside.get(folder, ()) if sub in self.below]

    def descend(self, folder: _Folder, stop_at_parts: bool = False, classes: Set[str] = frozenset()) -> _Folder:
        """Return the folder that divides the images, below single folders that contain all of them.

        A folder with the name of one of the ``classes`` is not entered.
        """
        while len(subs := self.sub_folders(folder)) == 1 and self.sub_folders(subs[0]):
            is_part = stop_at_parts and (part_of(subs[0][-1]) or ("", ("",)))[1] == ()
            if is_part or subs[0][-1] in classes or any(sub not in self.filled for sub in self.inside[folder]):
                break
            folder = subs[0]
        return folder

    def class_folders(self, top: _Folder, classes: Set[str] = frozenset()) -> list[_Folder]:
        """Return the folders of classes below the folder of a part, empty ones too."""
        root = self.descend(top, classes=classes)
        if not self.sub_folders(root):
            return []
        folders = self.inside.get(root, [])
        # carelessly packed archives have all classes once more, in a folder of the same name as the one around it
        own = root[-1] if root else self.path.absolute().name
        others = {folder[-1] for folder in folders} - {own}
        copies = {f for f in folders if f[-1] == own and {s[-1] for s in self.sub_folders(f)} & others}
        return [folder for folder in folders if folder not in copies]

    def refuse_classes_within(self, folders: Sequence[_Folder]) -> None:
        """Raise InputError if sub-folders of class folders may be parts or classes too."""
        outer = {folder[-1] for folder in folders}
        inner = Counter(s[-1] for folder in folders for s in self.sub_folders(folder) if s[-1] != folder[-1])
        unclear = [name for name in inner if inner[name] > 1 or ((token := part_of(name)) and not token[1])]
        if len(unclear) > 1 or outer & inner.keys():
            above, below = ", ".join(sorted(outer)[:3]), ", ".join([*inner][:3])
            raise InputError(
                f"{self.path} has the folders {above}, and in them {below}; "
                "which are the classes is not clear: put them into train and test, without folders in them"
            )


def _parts(tree: _Tree, base: _Folder) -> dict[str, _Folder]:
    """Return the folder of each part, nothing if the folders are classes."""
    subs = tree.sub_folders(base)
    named = {sub: token for sub in subs if (token := part_of(sub[-1]))}
    others = [sub[-1] for sub in subs if sub not in named]
    groups: dict[tuple[str, ...], list[tuple[str, _Folder]]] = defaultdict(list)
    for sub, (part, rest) in named.items():
        groups[rest].append((part, sub))
    divided = [
        group
        for rest, group in groups.items()
        if {part for part, _ in group} > {"train"} or (not rest and len(group) == 1)
    ]
    is_plain = not any(tree.sub_folders(sub) for sub in subs)
    if is_plain and len(others) > 1 and list(named.values()) == [("train", ())]:
        return {}  # a class of vehicles
    if not divided and () not in groups and (others or len({part for part, _ in named.values()}) < 2):
        return {}  # classes such as train_station and test_tube, or none with such a word
    group = divided[0] if len(divided) == 1 else []
    parts = dict(group)
    names = [sub[-1] for sub in named]
    classes = {folded(folder[-1]) for folder in tree.class_folders(parts.get("train", base))}
    # cis_test and trans_test beside train: labelled images of a part that would be made of others
    labelled = [
        sub
        for sub, (part, _) in named.items()
        if part not in parts and classes & {folded(folder[-1]) for folder in tree.class_folders(sub)}
    ]
    if labelled or "train" not in parts or len(parts) < len(group) or (len(parts) == 1 and others):
        raise InputError(
            f"{tree.path} has the folders {', '.join([*names, *others[:3]])}, which are not clearly parts or "
            "classes; name the parts train, val and test, one folder each, and put the classes into them; or "
            "rename a class"
        )
    return parts


def _are_shards(folders: Sequence[_Folder]) -> bool:
    """Return whether folders such as images_part_1 and images_part_2 divide the files by number only."""
    names = {re.sub("[^a-z]+", " ", folder[-1].lower()).strip() for folder in folders}
    return len(folders) > 1 and len(names) == 1 and not _SHARD_TOKENS.isdisjoint(names.pop().split())


def _refuse_annotations(path: Path, folders: Sequence[_Folder]) -> None:
    """Raise InputError if one of the folders of classes has masks of the images in the others."""
    if masks := _annotations(folders):
        names = ", ".join(sorted(folder[-1] for folder in folders)[:3])
        raise InputError(
            f"{path} has the folders {names}, and {masks[0][-1]} is no class by its name; move it elsewhere, or "
            "rename it"
        )


def _annotations(folders: Sequence[_Folder]) -> list[_Folder]:
    """Return the folders that have masks of the images in the others, by their names."""
    names = {folder[-1].lower(): folder for folder in folders}
    return [
        folder
        for name, folder in names.items()
        if name in _ANNOTATIONS
        or ((name in _MASKS or name.startswith(("segmentation", "mask"))) and _IMAGES & names.keys())
    ]


def _name_parts(path: Path, layout: ImageLayout, folders: Mapping[str, str], lists: Sequence[str]) -> None:
    """Rename eval and val to the parts that they serve as, and say where each part comes from."""
    present = {part for part, _ in layout.label.values()}
    names = {part: part for part in present}
    if "eval" in present:
        if {"test", "val"} <= present:
            raise InputError(f"{path} has images for eval, test and val; name two of the parts val and test")
        names["eval"] = "val" if "test" in present else "test"
    if "val" in present and "test" not in names.values():
        names["val"] = "test"
    layout.label = {name: (names[part], label) for name, (part, label) in layout.label.items()}
    layout.classes = {name: (names.get(part, part), label) for name, (part, label) in layout.classes.items()}
    for part in sorted(present):
        by_list = (
            f"those of {part} in {' and '.join(lists[:3])}" if lists else f"those that the table has for {part}"
        )
        layout.origin[names[part]] = folders.get(part, by_list)

"""Which part and class each image of a folder has: by the folders around it, or by a table beside it."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from steppe.data.sources._tables import Labels, part_of, read_labels
from steppe.data.sources.image_files import Listing
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


def find_layout(path: Path, names: Sequence[str], listing: Listing, tables: Mapping[str, bytes]) -> ImageLayout:
    """Return the layout of the images ``names`` of a folder or archive.

    Parts are folders whose names have one of the usual words (see `part_of`), anywhere below single folders that
    contain everything; classes are the folders in them. Images without class folders are labelled by a table.
    ``val`` serves as the test images if there is no ``test``; ``eval`` is the one of the two that is missing.

    Raises InputError if folders or tables can be understood in two ways, or no image is labelled for training.
    """
    tree = _Tree(path, names, listing)
    layout = ImageLayout()
    base = tree.descend((), stop_at_parts=True)
    tops = _parts(tree, base) or {"": base}
    training = tops.get("train", base)
    train_classes = {folder[-1] for folder in tree.class_folders(training)}
    class_folders: dict[str, list[_Folder]] = {}
    undivided: dict[str, str | None] = {}
    for part, top in tops.items():
        folders = tree.class_folders(top, frozenset() if top == training else train_classes)
        if tables and _are_shards(folders):
            undivided |= dict.fromkeys(tree.names(top), part or None)
            continue
        if train_classes & {folder[-1] for folder in folders}:
            class_folders[part] = folders
        if len(folders) < 2 or part not in class_folders:
            undivided |= dict.fromkeys(tree.names(top), part or None)
    by_table, layout.notes = read_labels(str(path), tables, undivided)
    for part, folders in class_folders.items():
        if by_table.keys() & tree.names(tops[part]):
            continue
        tree.refuse_classes_within(folders)
        _refuse_annotations(path, folders)
        for folder in folders:
            layout.classes["/".join(folder)] = (part or "train", folder[-1])
            layout.label |= dict.fromkeys(tree.names(folder), (part or "train", folder[-1]))
    _refuse_other_classes(path, layout, tables, tree)
    layout.label |= {name: (part or "train", label) for name, (part, label) in by_table.items()}
    _name_parts(path, layout, {part: f"the folder {top[-1]}" for part, top in tops.items() if part})
    unused = Counter("/".join(tree.images[name]) or "its top" for name in names if name not in layout.label)
    if unused:
        places = ", ".join(folder for folder, _ in unused.most_common(3)) + ", ..." * (len(unused) > 3)
        layout.notes.append(f"{unused.total()} images without a class (in {places})")
    return layout


class _Tree:
    """Folders with the images in and below them."""

    def __init__(self, path: Path, names: Sequence[str], listing: Listing):
        self.path = path
        self.images = {name: PurePosixPath(name).parts[:-1] for name in names}
        self.filled = {PurePosixPath(f).parts for f in listing.filled} | set(self.images.values())
        self.below: dict[_Folder, list[str]] = defaultdict(list)
        for name, parents in self.images.items():
            for i in range(len(parents) + 1):
                self.below[parents[:i]].append(name)
        folders = {PurePosixPath(f).parts for f in listing.folders} | set(self.below)
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
    if "train" not in parts or len(parts) < len(group) or (len(parts) == 1 and others):
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
    names = {folder[-1].lower(): folder[-1] for folder in folders}
    masks = [name for name in names if name in _ANNOTATIONS or (name in _MASKS and _IMAGES & names.keys())]
    if masks:
        raise InputError(
            f"{path} has the folders {', '.join(sorted(names.values())[:3])}, and {names[masks[0]]} is no class "
            "by its name; move it elsewhere, or rename it"
        )


def _refuse_other_classes(path: Path, layout: ImageLayout, tables: Mapping[str, bytes], tree: _Tree) -> None:
    """Raise InputError if a table divides the images of the class folders otherwise."""
    by_table: Labels = {}
    with contextlib.suppress(InputError):  # a table without clear labels contradicts nothing
        by_table, _ = read_labels(str(path), tables, dict.fromkeys(layout.label))
    pairs = {(layout.label[name][1], label) for name, (_, label) in by_table.items()}
    if pairs and not len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
        raise InputError(
            f"{path} has a table ({', '.join(sorted(tables))}) with other classes than its folders; remove the "
            "table, or put all images into one folder"
        )


def _name_parts(path: Path, layout: ImageLayout, folders: Mapping[str, str]) -> None:
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
        layout.origin[names[part]] = folders.get(part, f"those that the table has for {part}")

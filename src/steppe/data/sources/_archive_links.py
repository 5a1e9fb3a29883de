"""Where the links in an archive lead, resolved as a file system would."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

_HOPS = 40  # links that lead to links, as many as Linux follows
_MOST = 100_000  # names through links; a few folders of links to each other would have any number


def resolve(images: Iterable[str], links: Mapping[str, str]) -> tuple[dict[str, str], Counter[str]]:
    """Return the image of each name that leads through a link, and the numbers of links that are not followed.

    ``links`` has the target of each link, a path from the top of the archive. Not followed are links that lead to
    no image or folder of the archive, and those back to a folder above.

    Raises ValueError if links in links would name more images than any data set has by them.
    """
    files, inside = set(images), defaultdict(set)
    for name in (*files, *links):
        parts = name.split("/")
        for i, part in enumerate(parts):
            inside["/".join(parts[:i])].add(part)

    def real(path: str) -> str | None:
        done: list[str] = []
        todo, hops = path.split("/")[::-1], 0
        while todo:
            part = todo.pop()
            if part in ("", ".."):  # absolute, or outside of the archive
                return None
            done.append(part)
            if target := links.get("/".join(done)):
                hops += 1
                if hops > _HOPS:
                    return None
                done, todo = [], todo + ([] if target == "." else target.split("/")[::-1])
        place = "/".join(done)
        return place if place in files or place in inside else None

    results: dict[str, str] = {}
    unfollowed: Counter[str] = Counter()
    entered = [("", "", frozenset({""}))]
    for _ in range(_MOST):
        if not entered or len(results) > _MOST:
            break
        folder, prefix, above = entered.pop()
        for part in inside[folder]:
            path, name = f"{folder}/{part}".lstrip("/"), f"{prefix}/{part}".lstrip("/")
            target = real(path) if path in links else path
            if target is None:
                unfollowed["unresolved link"] += folder == prefix  # once, however its folder is reached
            elif target in files:
                results |= {name: target} if name != target else {}
            elif target in above:
                unfollowed["circular link"] += 1
            else:
                entered.append((target, name, above | {target}))
    else:
        raise ValueError(f"its links lead to more than {_MOST:,} folders")
    if len(results) > _MOST:
        raise ValueError(f"its links name more than {_MOST:,} images")
    return results, unfollowed

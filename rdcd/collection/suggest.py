"""What may be done about pictures that are alike: the one place where a picture is called a duplicate.

A picture is a `duplicate` only if the file that it is one of is there now, is another file on the disk, has the bytes
that were compared, and is kept itself: nothing is lost if every duplicate is deleted. All else is left for `review`.
"""

import os
from collections.abc import Callable, Iterator, Sequence

from rdcd.collection.keep import TIES, Rule
from rdcd.collection.matching import ALIKE, IDENTICAL, SAME
from rdcd.collection.on_disk import CHANGED, GONE, OnDisk, identities, look_at_all, same_file
from rdcd.collection.rejected import Rejected

COLUMNS = ("path", "action", "of", "score", "confidence", "reason", "group", "width", "height", "bytes", "sha256",
           "of_sha256")
SURE = 0.99  # expected precision from which a picture that looks alike is called a duplicate


class Links:
    """Pictures that match, by content: files of the same bytes have the same matches, however many were looked for."""

    def __init__(self) -> None:
        self.digests: dict[str, bytes] = {}  # path → SHA-256 when it was indexed
        self._alike: dict[bytes, dict[bytes, tuple[float, float | None]]] = {}

    def add(self, first: str, first_digest: bytes, second: str, second_digest: bytes, score: float,
            confidence: float | None) -> None:
        """Note a match; of two scores, the lower counts."""
        self.digests |= {first: first_digest, second: second_digest}
        for one, other in ((first_digest, second_digest), (second_digest, first_digest)):
            known = self._alike.setdefault(one, {})
            if other not in known or score < known[other][0]:
                known[other] = score, confidence

    def of(self, path: str) -> dict[bytes, tuple[float | None, float | None]]:
        """Return what a picture matches: SHA-256 → score and expected precision; its own content is among them."""
        own = self.digests[path]
        return {own: (None, None)} | self._alike[own]


class Suggestions:
    """Decides for every picture that matches one.

    In the order of keeping, a picture that matches none of those kept so far is kept; the others go to the one of these
    that they match best: of the same bytes, then by score. So each picture of a group matches the one that is kept.

    Args:
        links: what matches what.
        rules: which are kept first; ties go by pixels, bytes, age and path.
        rejected: pairs that do not count.
        mine: tells by path which pictures something is suggested for.
        theirs: tells which ones they are compared with; those that are not `mine`, too, stay whatever comes, and those
            that are both are kept before those that are `mine` alone.

    Attributes:
        groups: path → number of its group, largest first, of pictures whose keeper is `mine`.
        stale: how many have changed or gone since they were indexed.
    """

    def __init__(self, links: Links, rules: Sequence[Rule], rejected: Rejected, *,
                 mine: Callable[[str], bool] = lambda path: True,
                 theirs: Callable[[str], bool] = lambda path: True) -> None:
        self._links, self._rejected, self._given = links, rejected, rules
        self._rules = [*rules, *(rule for rule in TIES if rule not in rules)]
        self._files = look_at_all(links.digests)
        self.stale = sum(file.fault in (GONE, CHANGED) for file in self._files.values())
        self._mine = {path for path in links.digests if mine(path)}
        self._same, self._of = {}, {}  # path → an earlier one of the same file; → the one kept that it goes to
        self._order = self._ordered(theirs)
        self._place = {path: place for place, path in enumerate(self._order)}
        self._kept = self._decide()
        self._members: dict[str, list[str]] = {}
        for path in self._order:
            if path in self._mine:
                self._members.setdefault(self._root(path), []).append(path)
        found = [group for root, group in self._members.items() if root in self._mine and len(group) > 1]
        self._groups = sorted(found, key=lambda group: (-len(group), min(map(os.fsencode, group))))
        self.groups = {path: number + 1 for number, group in enumerate(self._groups) for path in group}

    def _ordered(self, theirs: Callable[[str], bool]) -> list[str]:
        """Return all paths in the order of keeping; what is not as it was indexed comes last."""
        known, self._file = {}, {}  # identity → the first path that has it, and path → that
        for path, file in self._files.items():
            keys = () if file.fault else identities(file.about)
            self._file[path] = next((known[key] for key in keys if key in known), path)
            known |= {key: self._file[path] for key in keys}
        own = {self._file[path] for path in self._mine}
        others = {self._file[path] for path in self._files if theirs(path)}

        def key(path: str) -> tuple:
            file, last = self._files[path], os.fsencode(path)
            if file.fault:
                return 3, last
            rank = 0 if self._file[path] not in own else 1 if self._file[path] in others else 2
            return rank, path not in self._mine, *(rule.key(file) for rule in self._rules), last

        return sorted(self._files, key=key)

    def _decide(self) -> set[str]:
        """Give every path its place; return those that are kept."""
        own, first, kept = {self._file[path] for path in self._mine}, {}, {}
        for path in self._order:
            file = self._file[path]
            if first.setdefault(file, path) != path:
                self._same[path] = first[file]
                continue
            keeper = self._best(path, kept) if file in own else None
            if keeper is not None:
                self._of[path] = keeper
            elif self._files[path].fault is None:
                kept.setdefault(self._links.digests[path], []).append(path)
        return {path for paths in kept.values() for path in paths}

    def _best(self, path: str, among: dict[bytes, list[str]]) -> str | None:
        """Return which of some pictures, by content, a picture matches best; None: none of them."""
        digest = self._links.digests[path]
        found = [(other_digest == digest, score or 0.0, -self._place[other], other)
                 for other_digest, (score, _) in self._links.of(path).items() for other in among.get(other_digest, ())
                 if self._file[other] != self._file[path]
                 and not self._rejected.pair(path, digest, other, other_digest)]
        return max(found)[-1] if found else None

    def _root(self, path: str) -> str:
        path = self._same.get(path, path)
        return self._of.get(path, path)

    def same(self, first: str, second: str) -> bool:
        """Tell whether two paths lead to one file."""
        return self._file[first] == self._file[second]

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield the rows of actions.csv: group after group, the picture to keep first, then by path those of no group.

        The files are looked at once more as each row is made: write it at once.
        """
        for group in self._groups:
            for path in group:
                yield self._row(path, kept=path == group[0] and path in self._kept, group=group)
        content: dict[bytes, list[str]] = {}
        for path, digest in self._links.digests.items():
            content.setdefault(digest, []).append(path)
        for path in sorted(self._mine - self.groups.keys(), key=os.fsencode):
            of = self._of.get(path) or self._same.get(path) or self._best(path, content)
            if of is None:
                of = next((other for other in content[self._links.digests[path]] if other != path
                           and self.same(path, other)), None)
            if of is not None:
                yield self._row(path, of=of)

    def _row(self, path: str, *, of: str | None = None, kept: bool = False,
             group: Sequence[str] = ()) -> dict[str, object]:
        file, digest = self._files[path], self._links.digests[path]
        row = {"path": path, "action": "keep", "of": None, "score": None, "confidence": None, "reason": None,
               "group": self.groups.get(path), "width": file.width, "height": file.height, "bytes": file.size,
               "sha256": digest.hex(), "of_sha256": None}
        if kept:
            return row | {"reason": self._why(file, [self._files[other] for other in group[1:]])}
        of = of or self._of.get(path) or self._same[path]
        score, confidence = self._links.of(path)[self._links.digests[of]]
        kind = SAME if self.same(path, of) else IDENTICAL if digest == self._links.digests[of] else ALIKE
        doubt = self._doubt(path, of, kind)
        sure = kind == IDENTICAL or kind == ALIKE and confidence is not None and confidence >= SURE
        return row | {"action": "duplicate" if sure and doubt is None else "review", "of": of,
                      "score": score and round(score, 6), "confidence": confidence,
                      "reason": kind if doubt is None else f"{kind}; {doubt}",
                      "of_sha256": self._links.digests[of].hex()}

    def _doubt(self, path: str, of: str, kind: str) -> str | None:
        """Say why a picture cannot be a duplicate of another, however alike they are."""
        file, other = self._files[path], self._files[of]
        if file.fault or other.fault:
            return file.fault or f"the other {other.fault}"
        if kind == SAME:
            return None
        if of not in self._kept:
            return "the other is not kept itself"
        for rule in self._given if kind == ALIKE else ():
            if rule.key(file) != rule.key(other):
                if rule.key(file) < rule.key(other):
                    return f"keep={rule.text} prefers this one"
                break
        if file.moved() or other.moved():
            return "one of the two has changed during this run"
        return "both are one file now" if same_file(path, of) else None

    def _why(self, kept: OnDisk, others: Sequence[OnDisk]) -> str:
        """Say what decided that a picture of a group is kept and not the next."""
        if all(self.same(kept.path, file.path) for file in others):
            return "the only file"
        best = next((file for file in others if not file.fault and not self.same(kept.path, file.path)), None)
        if best is None:
            return "the only one that is as it was indexed"
        return next((rule.said for rule in self._rules if rule.key(kept) != rule.key(best)), "first by path")

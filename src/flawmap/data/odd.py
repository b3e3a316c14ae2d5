"""Images that are stored or shaped unlike the others of their product.

Such an image is learnt as a good one, though no other looks like it, and as a good one that stands
out it may set the threshold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median_low

from flawmap.data.check import Finding
from flawmap.data.samples import SampleTable
from flawmap.data.verify import ImageFacts
from flawmap.wording import shown

_OTHER_SHAPE = 1.15
"""The ratio of width to height differs by this factor from the usual one."""

_FEW = 0.2
"""The largest share of a product's images that is odd, not simply another usual form."""

_TRANSPARENT = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})

_HINT = (
    "bring them to the form of the others or take them out: what one good image alone looks like "
    "is learnt badly, and a threshold that it sets lets flaws through"
)

_TRAITS: tuple[Callable[[ImageFacts], str], ...] = (
    lambda fact: "grey" if fact.grey else "in colour",
    lambda fact: f"stored with {fact.info.bits} bits a channel",
    lambda fact: "transparent" if fact.info.mode in _TRANSPARENT else "opaque",
)


def odd_findings(facts: Sequence[ImageFacts], table: SampleTable) -> Iterable[Finding]:
    """A warning for each product and way in which some good images of it differ from most.

    Args:
        facts: What decoding showed of the images; those of the test are left aside.
        table: Where they come from.
    """
    by_category: defaultdict[str, list[ImageFacts]] = defaultdict(list)
    for fact in facts:
        if fact.sample.split != "test" and fact.sample.label != 1:
            by_category[fact.sample.category].append(fact)
    for category, mine in sorted(by_category.items()):
        for trait in _TRAITS:
            words = [trait(fact) for fact in mine]
            (usual, _), *others = Counter(words).most_common()
            for word, n in others:
                if n > _FEW * len(mine):
                    continue
                odd = [f for f, w in zip(mine, words, strict=True) if w == word]
                yield _finding(table, category, odd, len(mine), f"{word}, most are {usual}")
        shapes = [fact.size[1] / fact.size[0] for fact in mine]
        usual_shape = median_low(shapes)
        odd = [
            fact
            for fact, shape in zip(mine, shapes, strict=True)
            if max(shape, usual_shape) > _OTHER_SHAPE * min(shape, usual_shape)
        ]
        if 0 < len(odd) <= _FEW * len(mine):
            height, width = mine[shapes.index(usual_shape)].size
            what = f"of another shape; {width} x {height} px is usual"
            yield _finding(table, category, odd, len(mine), what)


def _finding(
    table: SampleTable, category: str, odd: Sequence[ImageFacts], of: int, words: str
) -> Finding:
    paths = tuple(fact.sample.path for fact in odd)
    are = "is" if len(odd) == 1 else "are"
    return Finding(
        "warning",
        f"{len(odd):,} of {of:,} images of '{shown(category)}' {are} {words}: {table.few(paths)}",
        _HINT,
        paths,
    )

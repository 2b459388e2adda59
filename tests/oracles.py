"""Definitions written out in loops, for the tests that hold something against them."""


def trapezoids(rows: list[tuple[float, bool]], positives: int) -> float:
    """Average precision of (distance, hit) rows in their order: mean of precision before and after each hit."""
    area, hits = 0.0, 0
    for rank, (_, hit) in enumerate(rows):
        if hit:
            before = 1.0 if rank == 0 else hits / rank
            hits += 1
            area += (before + hits / (rank + 1)) / 2 / positives
    return area

import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.retrieval.score_norm import (
    ScoreNorm,
    augment_queries,
    augment_references,
    background_products,
    parse_score_norm,
)


def bias_oracle(queries, background, beta, first, last):
    out = []
    for q in queries.astype(np.float64):
        products = sorted((float(q @ b) for b in background.astype(np.float64)), reverse=True)
        chosen = [products[i] for i in range(first, last + 1)]
        out.append(beta * sum(chosen) / len(chosen))
    return np.array(out)


@pytest.mark.parametrize("text, expected", [
    (None, None),
    ("1.0[0,2]", ScoreNorm(1.0, 0, 2)),
    (" 0.5 [ 3 , 12 ] ", ScoreNorm(0.5, 3, 12)),
    ("2[4,4]", ScoreNorm(2.0, 4, 4)),
    (".25[0,0]", ScoreNorm(0.25, 0, 0)),
])
def test_parses(text, expected):
    assert parse_score_norm(text) == expected


@pytest.mark.parametrize("text", ["", "1.0", "1.0[0]", "1.0[2,0]", "1.0[0,2", "-1[0,2]", "1.0[-1,2]",
                                  "x[0,2]", "1.0[0,2]x", "1.0(0,2)", "1.0[0,1.5]", 1.0, "."])
def test_refuses_other_strings(text):
    with pytest.raises(UserError, match=r"not understood; expected null .* a string like '1.0\[0,2\]'"):
        parse_score_norm(text)


@pytest.mark.parametrize("beta, first, last", [(1.0, 0, 2), (0.7, 3, 9), (2.0, 1, 1), (1.0, 0, 39)])
def test_bias_and_extra_coordinate_equal_the_oracle(beta, first, last):
    rng = np.random.default_rng(int(10 * beta) + last)
    queries, references, background = (rng.normal(size=(n, 8)).astype(np.float32) / 4 for n in (9, 30, 40))
    background[5:15] = background[5]  # ties
    norm = ScoreNorm(beta, first, last)
    bias = norm.bias(background_products(queries, background, last + 1))
    np.testing.assert_allclose(bias, bias_oracle(queries, background, beta, first, last), atol=1e-6)
    np.testing.assert_allclose(augment_queries(queries, bias) @ augment_references(references).T,
                               queries @ references.T - bias[:, None], atol=1e-6)
    assert augment_queries(queries, bias).dtype == augment_references(references).dtype == np.float32


def test_refuses_no_background_and_one_too_small():
    queries = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(UserError, match="at least 3 vectors, none was given; give background=FILE"):
        background_products(queries, None, 3)
    for n in (0, 2):
        with pytest.raises(UserError, match=f"background of at least 3 vectors, got {n};"):
            background_products(queries, np.ones((n, 3), dtype=np.float32), 3)

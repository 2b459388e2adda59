import dataclasses

import pytest

from rdcd.errors import UserError
from rdcd.evaluation.protocols import Protocol


def test_default_is_the_published_disc_protocol() -> None:
    protocol = Protocol()
    assert dataclasses.asdict(protocol) == {
        "name": "disc", "layout": "disc", "split": "dev", "size": None, "resize": None, "codecs": ["Flat"],
        "score_norms": [None, "1.0[0,2]"], "candidates": "per_query", "k": 10, "bootstrap": 1000}
    assert Protocol().codecs is not protocol.codecs


@pytest.mark.parametrize(("protocol", "said"), [
    ((Protocol(), "square"), "disc (dev queries), 288 px square, aspect not kept, candidates per_query: "
                 "10 nearest references of every query"),
    ((Protocol(name="isc", split="final", candidates="global", k=5), "short"),
     "isc (final queries), 288 px short side, aspect kept, candidates global: "
     "best 5 × queries pairs over all queries"),
    ((Protocol(name="ndec", layout="ndec"), "long"), "ndec, 288 px long side, aspect kept, candidates per_query: "
                                                     "10 nearest references of every query"),
    ((Protocol(name="cd10k", layout="cd10k", score_norms=[None], k=100), "short"),
     "cd10k, 288 px short side, aspect kept, candidates per_query: 100 nearest references of every query by L2 "
     "distance")])
def test_description_names_what_moves_a_number(protocol: tuple[Protocol, str], said: str) -> None:
    assert protocol[0].describe(288, protocol[1]) == said


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Protocol().k = 3


@pytest.mark.parametrize(("options", "said"), [
    ({"codecs": ["foo"]}, "faiss cannot parse codec 'foo'"),
    ({"codecs": []}, r"protocol.codecs=\[\]: expected a list of one or more"),
    ({"codecs": "Flat"}, "protocol.codecs=Flat: expected a list"),
    ({"codecs": ["Flat", "FOO8,Flat"]}, "faiss cannot parse codec 'FOO8,Flat'"),
    ({"score_norms": ["x"]}, "score normalization 'x' not understood"),
    ({"score_norms": []}, r"protocol.score_norms=\[\]"),
    ({"codecs": 3}, "protocol.codecs=3: expected a list"),
    ({"resize": "stretch"}, "protocol.resize=stretch: expected square, short, long, or null"),
    ({"size": 0}, "protocol.size=0: expected a whole number of at least 1, or null"),
    ({"layout": "isc"}, "protocol.layout=isc: expected one of disc, ndec, cd10k, pairs"),
    ({"bootstrap": -1}, "protocol.bootstrap=-1: expected a whole number of at least 0"),
    ({"layout": "cd10k"}, r"protocol.layout=cd10k is measured by distance.*protocol.score_norms=\[null\]"),
    ({"layout": "cd10k", "score_norms": [None], "candidates": "global"}, "protocol.candidates=per_query"),
    ({"candidates": "all"}, "candidates=all: expected one of"),
    ({"k": 0}, "k=0: expected a whole number of at least 1")])
def test_what_is_not_understood_is_said_at_once(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Protocol(**options)


def test_codecs_of_any_size_are_understood() -> None:
    Protocol(codecs=["Flat", "PCAW{d},L2norm,Flat", "PCA64,Flat", "L2norm,PCAW2048,L2norm,Flat"])

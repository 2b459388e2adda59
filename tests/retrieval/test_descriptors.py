import h5py
import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.retrieval.descriptors import Descriptors, read_descriptors, some, write_descriptors


def four(**changes):
    values = {"names": np.array(["b", "a", "ä", "R000003"]),
              "vectors": np.arange(12, dtype=np.float32).reshape(4, 3)}
    return Descriptors(**{**values, **changes})


@pytest.mark.parametrize("missing", [[], ["Q00007", "é"]])
def test_what_is_written_is_read_back(tmp_path, missing):
    path = tmp_path / "new" / "queries.hdf5"
    write_descriptors(path, four(missing=np.array(missing, dtype=str)))
    found = read_descriptors(path)
    assert found.names.tolist() == ["b", "a", "ä", "R000003"]
    assert found.missing.tolist() == missing
    assert found.known.tolist() == ["b", "a", "ä", "R000003", *missing]
    assert found.vectors.dtype == np.float32 and (found.vectors == four().vectors).all()
    assert found.dim == 3 and len(found) == 4
    with h5py.File(path) as file:  # the ISC2021 format
        assert file["image_names"][:].dtype.kind == "S" and file["vectors"].dtype == np.float32


@pytest.mark.parametrize("names", [np.array([b"Q1", b"Q22"]), ["Q1", "Q22"]])
def test_reads_fixed_and_variable_length_names_and_other_floats(tmp_path, names):
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["vectors"], file["image_names"] = np.eye(2, dtype=np.float16), names
    found = read_descriptors(tmp_path / "d.h5")
    assert found.names.tolist() == ["Q1", "Q22"] and found.vectors.dtype == np.float32


def test_sorted_by_name():
    ordered = four().sorted()
    assert ordered.names.tolist() == ["R000003", "a", "b", "ä"]
    assert ordered.vectors[:, 0].tolist() == [9, 3, 0, 6]
    assert ordered.sorted() is ordered


def bad(row, value):
    vectors = np.ones((4, 3), dtype=np.float64)
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize("changes, message", [
    ({"names": ["a", "b"]}, "2 names for 4 vectors"),
    ({"vectors": np.ones(4)}, r"vectors of shape \[4\] with names of shape \[4\]"),
    ({"vectors": np.ones((4, 0))}, r"vectors of shape \[4, 0\]"),
    ({"names": [], "vectors": np.ones((0, 3))}, "no vectors; expected at least one"),
    ({"names": ["a", "b", "a", "b"]}, "the same id twice: a, b; .*must differ"),
    ({"missing": ["c", "a"]}, "the same id twice: a;"),
    ({"vectors": bad(2, np.nan)}, "NaN or infinity in the vectors of ä; expected finite"),
    ({"vectors": bad(1, -np.inf)}, "NaN or infinity in the vectors of a;"),
    ({"vectors": bad(0, 1e300)}, "NaN or infinity in the vectors of b;"),
])
def test_refuses_unsound_descriptors(changes, message):
    with pytest.raises(UserError, match=message):
        four(**changes)


def test_long_lists_are_cut():
    assert some(np.array(list("abcdefgh"))) == "a, b, c, d, e and 3 more"


def test_file_mistakes_name_the_file(tmp_path):
    path = tmp_path / "d.hdf5"

    def refused(message):
        with pytest.raises(UserError, match=message) as error:
            read_descriptors(path)
        assert str(path) in str(error.value)

    def write(**datasets):
        with h5py.File(path, "w") as file:
            for name, value in datasets.items():
                file[name] = value

    refused("no descriptor file .*rdcd extract")
    path.write_text("query_id,reference_id\n")
    refused("not a whole HDF5 file")
    write_descriptors(path, Descriptors(np.arange(500).astype(str), np.ones((500, 64))))
    path.write_bytes(path.read_bytes()[:-4096])
    refused("not a whole HDF5 file")
    write(vectors=np.eye(2), names=[b"a", b"b"])
    refused(r"no dataset image_names \(it has: names, vectors\)")
    write()
    refused(r"no dataset vectors nor image_names \(it has: none\)")
    write(vectors=[b"a", b"b"], image_names=[b"a", b"b"])
    refused("`vectors` holds .*expected float32")
    write(vectors=h5py.Empty("f4"), image_names=np.array([b"Q1"]))
    refused("`vectors` holds nothing, expected float32")
    with h5py.File(path, "w") as file:
        file["vectors"], file["image_names"] = np.ones((1, 2), np.float32), np.array([b"Q1"])
        file.create_group("missing")
    refused("`missing` is no array of byte strings")
    write(vectors=np.eye(2), image_names=[1, 2])
    refused("`image_names` holds int64, expected byte strings")
    write(vectors=np.eye(2), image_names=np.array([b"a", b"\xff"]))
    refused("`image_names` is not UTF-8")
    write(vectors=np.eye(3), image_names=[b"a", b"b"])
    refused("2 names for 3 vectors")
    write(vectors=np.full((1, 2), np.nan), image_names=[b"Q7"])
    refused("NaN or infinity in the vectors of Q7")
    write(vectors=np.eye(2), image_names=[b"Q7", b"Q7"])
    refused("the same id twice: Q7")
    write(vectors=np.ones((0, 2)), image_names=np.array([], dtype="S1"))
    refused("no vectors")

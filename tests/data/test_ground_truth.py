import pytest

from rdcd.data.ground_truth import read_ground_truth, read_ids, write_ground_truth
from rdcd.errors import UserError


def written(folder, text):
    path = folder / "truth.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", [
    "Q1,R1\nQ2,\nQ1,R2\nQ3,R1\n",
    "query_id,reference_id\nQ1,R1\nQ2,\nQ1,R2\nQ3,R1",
    "\ufeffQuery_ID, reference_id\r\nQ1,R1\r\nQ2,\r\n\r\nQ1 , R2\r\nQ3,R1\r\n",
])
def test_reads_pairs_in_file_order_with_or_without_header(tmp_path, text):
    assert read_ground_truth(written(tmp_path, text)) == [("Q1", "R1"), ("Q1", "R2"), ("Q3", "R1")]


def test_ids_are_read_in_nfc(tmp_path):
    (tmp_path / "truth.csv").write_text("cafe\u0301,é\nx,e\u0301\n")
    assert read_ground_truth(tmp_path / "truth.csv") == [("café", "é"), ("x", "é")]
    (tmp_path / "truth.csv").write_text("cafe\u0301,é\ncafé,e\u0301\n")
    with pytest.raises(UserError, match="line 2: pair café,é was already given on line 1"):
        read_ground_truth(tmp_path / "truth.csv")
    (tmp_path / "ids.csv").write_text("e\u0301\né\n")
    assert read_ids(tmp_path / "ids.csv") == ["é"]


def test_distractors_alone_give_no_pairs(tmp_path):
    assert read_ground_truth(written(tmp_path, "query_id,reference_id\nQ1,\nQ1,\n")) == []


def test_what_is_written_is_read_back(tmp_path):
    rows = [("Q2", "R,1"), ("Q0", ""), ('Q"1', "Rä"), ("Q2", "R0")]
    write_ground_truth(tmp_path / "new" / "truth.csv", iter(rows))
    assert read_ground_truth(tmp_path / "new" / "truth.csv") == [row for row in rows if row[1]]
    assert (tmp_path / "new" / "truth.csv").read_text("utf-8").splitlines()[0] == "query_id,reference_id"


@pytest.mark.parametrize("text, message", [
    ("query_id,reference_id\nQ1,R1\nQ2,R2,0.5\n", r"line 3: 3 columns \('Q2,R2,0.5'\), expected two"),
    ("Q1,R1\nQ2\n", "line 2: 1 columns .* leave the reference empty for a distractor"),
    ("Q1,R1\n,R7\n", "line 2: empty query id before reference 'R7'.*fill it in"),
    ("Q1,R1\nQ2,R2\nQ1,R1\n", "line 3: pair Q1,R1 was already given on line 1.*remove one"),
    (b"Q1,R1\n\xff\xfe\x00,\x01\n", "not a UTF-8 CSV"),
])
def test_mistakes_name_the_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        read_ground_truth(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["absent.csv", "."])
def test_no_such_file(tmp_path, name):
    with pytest.raises(UserError, match="no ground truth file .*query_id,reference_id; check the path"):
        read_ground_truth(tmp_path / name)


def test_a_blank_line_before_the_header(tmp_path):
    (tmp_path / "truth.csv").write_text("\n , \nquery_id,reference_id\nQ1,R1\n")
    assert read_ground_truth(tmp_path / "truth.csv") == [("Q1", "R1")]

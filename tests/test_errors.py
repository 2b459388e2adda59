import math
import pickle

import numpy as np
import pytest

from rdcd.errors import BadImage, ChecksFailed, UserError, check_number, check_path


@pytest.mark.parametrize(("value", "options"), [
    (1, {}), (np.int64(3), {}), (7, {"most": 7}), (None, {"null": "all"}), (0.5, {"whole": False, "least": 0.5}),
    (2, {"whole": False}), (1e-9, {"whole": False, "least": 0, "above": True}), (math.inf, {"whole": False})])
def test_numbers_in_range_pass(value, options):
    check_number("key", value, options.pop("least", 1), **options)


@pytest.mark.parametrize(("value", "options", "said"), [
    (0, {}, "key=0: expected a whole number of at least 1"),
    (1.5, {}, "key=1.5: expected a whole number"),
    (True, {}, "key=True: expected a whole number"),
    ("abc", {}, "key=abc: expected a whole number"),
    (None, {}, "key=None: expected a whole number of at least 1$"),
    (8, {"most": 7}, "at least 1 and at most 7$"),
    (1, {"whole": False, "above": True}, "key=1: expected a number above 1$"),
    (math.nan, {"whole": False}, "key=nan: expected a number of at least 1"),
    ("x", {"null": "all"}, "of at least 1, or null for all$")])
def test_others_are_refused_with_what_was_expected(value, options, said):
    with pytest.raises(UserError, match=said):
        check_number("key", value, 1, **options)


@pytest.mark.parametrize(("value", "said"), [
    (2024, "key=2024: expected a path$"), (None, "key=None: expected a path$"),
    (["a"], r"key=\['a'\]: expected a path$"), (True, "key=True: expected a path$"), ("", "key=: expected a path$")])
def test_what_is_no_path_is_refused(value, said):
    with pytest.raises(UserError, match=said):
        check_path("key", value)


def test_paths_pass(tmp_path):
    check_path("key", "a")
    check_path("key", tmp_path)
    check_path("key", None, null="none")
    with pytest.raises(UserError, match="expected a path, or null for the default$"):
        check_path("key", 3, null="the default")


def test_exit_codes_tell_a_mistake_from_a_failed_check():
    assert (UserError("x").code, ChecksFailed("x").code) == (2, 1)


def test_a_bad_image_crosses_processes():
    error = pickle.loads(pickle.dumps(BadImage("a/b.png", "truncated")))
    assert (error.path, error.reason, str(error)) == ("a/b.png", "truncated", "cannot read picture a/b.png: truncated")

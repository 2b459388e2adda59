"""The one error type whose message is written for the person at the keyboard, and the check of a number."""

import numbers
from pathlib import Path


class UserError(ValueError):
    """A mistake the user can mend: the message names the value, what was expected and what to do.

    The command line prints it without a traceback and exits with code 2; library callers catch it
    as the `ValueError` it is.
    """

    code = 2  # the command's exit code


class ChecksFailed(UserError):
    """Checks ran to their end and some failed: the input was understood, what it names is not in order."""

    code = 1


class BadImage(UserError):
    """A picture that cannot be decoded; `path` and `reason` go to the bad-file ledger."""

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"cannot read picture {path}: {reason}")

    def __reduce__(self):  # crosses process boundaries in loader workers
        return BadImage, (self.path, self.reason)


def check_path(key: str, value: object, *, null: str | None = None) -> None:
    """Refuse a setting that is no path.

    Args:
        key: how the user writes the setting.
        null: what None stands for; None: a path is needed.

    Raises:
        UserError: naming the setting, the value and what was expected.
    """
    if isinstance(value, str | Path) and str(value) or value is None and null is not None:
        return
    raise UserError(f"{key}={value}: expected a path" + (f", or null for {null}" if null is not None else ""))


def check_number(key: str, value: object, least: float, most: float | None = None, *, whole: bool = True,
                 above: bool = False, null: str | None = None) -> None:
    """Refuse a setting that is no number or out of range.

    Args:
        key: how the user writes the setting.
        least, most: bounds, both allowed; `most` None: no upper bound.
        whole: whether only whole numbers will do.
        above: whether `least` itself is refused.
        null: what None stands for; None: a number is needed.

    Raises:
        UserError: naming the setting, the value and what was expected.
    """
    if value is None and null is not None:
        return
    number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if number and (least < value if above else least <= value) and (most is None or value <= most):
        return
    bound = f"{'above' if above else 'of at least'} {least:g}"
    raise UserError(f"{key}={value}: expected a {'whole ' * whole}number {bound}"
                    + (f" and at most {most:g}" if most is not None else "")
                    + (f", or null for {null}" if null is not None else ""))

"""The one error type whose message is written for the person at the keyboard."""


class UserError(ValueError):
    """A mistake the user can mend: the message names the value, what was expected and what to do.

    The command line prints it without a traceback and exits with code 2; library callers catch it
    as the `ValueError` it is.
    """


class BadImage(UserError):
    """A picture that cannot be decoded; `path` and `reason` go to the bad-file ledger."""

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"cannot read picture {path}: {reason}")

    def __reduce__(self):  # crosses process boundaries in loader workers
        return BadImage, (self.path, self.reason)

"""What a published study is."""

from typing import NamedTuple


class Published(NamedTuple):
    """A study whose results are published: a command line, and how often it is run.

    Attributes:
        command: Of `straw-jax`.
        flags: Of the command.
        seeds: How many it takes, unless the user says otherwise.
        analysed: Whether `analyse` measures the trained models, too.
        estimate: How long it takes where it has not been run: from its steps, and from the times of
            steps in docs/performance.md.
    """

    command: str
    flags: str
    seeds: int = 1
    analysed: bool = False
    estimate: str = ""

"""The one exception that means "the user can mend this"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in what was asked for. Its text is one line: what is wrong and what to type next.

    The command line prints it without a traceback and exits with status 2.
    everywhere: all ranks met it, and the leading one says it. own: only a rank met it that does not lead.
    """

    everywhere = False
    own = False


class Interrupted(Exception):
    """A signal stopped the run after its state was saved. The text says how to go on; exit status 130."""


class RankLost(Interrupted):
    """Another of the processes that share the work has ended, so that this one cannot go on."""


class ReaderGone(BaseException):
    """The reader of our output has left, as in `rdi ... | head`: end without a word, exit status 141."""


@contextmanager
def extra(name: str, missing: str, otherwise: str = "") -> Iterator[None]:
    """Import packages of the extra `name` inside. Raises UserError where one is not installed, how to mend that.

    missing: what is said of it. otherwise: what helps as well.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{missing}: pip install 'rdi[{name}]'{otherwise}") from error

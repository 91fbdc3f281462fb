"""Work on a thread that nobody has to wait for: the process can end while it still runs."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begin(name: str, work: Callable[[], T]) -> Future[T]:
    """Do `work` on a daemon thread of this name; what it returns or raises is the result's."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # raised by whoever asks for the result
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


def within(limit: float, name: str, work: Callable[[], T]) -> T:
    """What `work` returns, which is waited for no longer than ``limit`` seconds.

    Raises:
        TimeoutError: it took longer.
        BaseException: what `work` raised.
    """
    try:
        return begin(name, work).result(limit)
    except TimeoutError:
        raise TimeoutError(f"not within {limit:g} s") from None

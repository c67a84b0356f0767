"""Named tests, one after another, and the table at the end. A failed test does not hide those after it."""

import contextlib
import sys
import threading
import time
import traceback


class Report:
    def __init__(self):
        self.rows = []
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def test(self, name):
        started = time.monotonic()
        problem = None
        try:
            yield
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            if not isinstance(error, AssertionError):
                traceback.print_exc()
        seconds = time.monotonic() - started
        with self.lock:
            self.rows.append((name, problem, seconds))
            print(f"{'ok  ' if problem is None else 'FAIL'} {name} ({seconds:.1f} s){'' if problem is None else ': ' + problem[:600]}")

    def failed(self):
        return [row for row in self.rows if row[1]]

    def finish(self, broker=None):
        """Prints the failures, the end of the broker's log if there are any, and the verdict; exits with it."""
        failed = self.failed()
        if failed and broker is not None:
            print(f"\n--- the end of {broker.log_path}\n{broker.log_tail()}\n---")
        for name, problem, _ in failed:
            print(f"FAIL {name}: {problem[:1500]}")
        print(f"{len(self.rows) - len(failed)} passed, {len(failed)} failed")
        sys.exit(1 if failed or not self.rows else 0)


def until(seconds, what, condition, pause=0.05):
    """Waits for `condition()` to give something true and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what() if callable(what) else what}"
        time.sleep(pause)

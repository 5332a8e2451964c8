"""Hold a variant to the laws in another process: whatever it does there, this one has the last word.

The variant, what it is compared with, and the modules of both are somebody's code. They may exit, crash, hang, print, or close
files. So that none of this can end a check early, and look like success, the process that prints the report and decides
about the exit code imports none of it: it asks a child for one law at a time, and takes an end or a silence of the child for a
broken law. A child that is gone is replaced for the next law.
"""

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

from ._outcomes import BROKEN, Outcome, Report, first_line


class Refused(ValueError):
    """There is nothing to check, in one line that says why."""


def check(asked, seconds, on_law, on_outcome):
    """Hold a variant to the laws.

    Args:
        asked: ``variant``, ``against`` (both as on the command line), ``laws``, ``examples``, ``seed`` and ``kind``.
        seconds: how long a law may take, and the import of what is checked.
        on_law: called with the name of each law before it is held.
        on_outcome: called with each :class:`Outcome`.

    Returns:
        :class:`Report`.

    Raises:
        Refused: the variant cannot be imported, or :func:`recast_ref.testing.check` refuses it.
    """
    for spec in [asked["variant"]] + [asked["against"]] * (":" in asked["against"]):
        _parts(spec)
    child = Child(asked, seconds)
    try:
        laws, names = child.start()

        def hold(law):
            on_law(law)
            try:
                if not child.lives:
                    child.start()
            except Refused as refused:  # it was not, at first
                return Outcome(law, BROKEN, message=f"could not be started again: {refused}")
            return child.hold(law)

        return Report(*names).collect(laws, hold, on_outcome)
    finally:
        child.end()


class Child:
    """The other process, as seen from this one."""

    def __init__(self, asked, seconds):
        self.asked, self.seconds, self.lives = asked, seconds, False

    def start(self):
        """Start it; returns the names of the laws, and those that :class:`Report` wants.

        Raises:
            Refused: as :func:`check`.
        """
        code = f"import sys; sys.path[:] = {sys.path!r}; from recast_ref import _apart; _apart.main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, and what the variant starts can be ended with it
        )
        self.lives, self.messages = True, queue.Queue()
        threading.Thread(target=_listen, args=(self.process.stdout, self.messages), daemon=True).start()
        self._say(self.asked | {"seconds": self.seconds})
        importing = None  # of what somebody wrote; torch may take as long as it takes
        try:
            while True:
                what, value = self._hear(time.monotonic() + self.seconds if importing else None)
                if what == "importing":
                    importing = value
                elif what == "plan":
                    return value
                else:
                    raise Refused(value)
        except Gone as gone:
            self.end()
            raise Refused(f"{importing or self.asked['variant']}: its import {gone}") from None
        except Refused:
            self.end()
            raise

    def hold(self, law):
        """The :class:`Outcome` of a law."""
        deadline = time.monotonic() + self.seconds
        message, line = "", ""
        try:
            self._say(law)
            while True:
                what, value = self._hear(deadline)
                if what == "outcome":
                    return Outcome(**value)
                if what == "broken":
                    message, line = value  # it is made smaller still, if there is time
                elif not message:
                    line = value
        except Gone as gone:
            self.end()
            return Outcome(law, BROKEN, message=message or str(gone), line=line)

    def end(self):
        """Kill it, with all that it started."""
        if self.lives:
            self.lives = False
            with contextlib.suppress(OSError):  # there may be none left
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            with contextlib.suppress(BrokenPipeError):  # what it did not read any more is still to be written
                self.process.stdin.close()

    def _say(self, value):
        with contextlib.suppress(BrokenPipeError):  # what became of it, _hear finds out
            self.process.stdin.write(json.dumps(value).encode() + b"\n")
            self.process.stdin.flush()

    def _hear(self, deadline):
        """The next message.

        Raises:
            Gone: there will be none, or there was none before the deadline.
        """
        while True:
            ended = self.process.poll() is not None
            late = deadline is not None and time.monotonic() > deadline
            try:
                message = self.messages.get(timeout=1.0 if ended else 0.0 if late else 0.1)
            except queue.Empty:
                if late and not ended:
                    raise Gone(f"did not end within {self.seconds} s (--timeout)") from None
                if not ended:
                    continue
                message = None  # what it started may hold the pipe open
            if message is None:
                raise Gone(self._last_words())
            return message

    def _last_words(self):
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed the files of the process"
        if code >= 0:
            return f"ended the process, with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"ended the process, by {name}"


class Gone(Exception):
    """The child says no more, and why."""


def _listen(stream, messages):
    with stream, contextlib.suppress(ValueError):  # a line that was cut off
        for line in stream:
            messages.put(json.loads(line))
    messages.put(None)


# ---- in the child


def main():
    """Do what the parent asks, a line of JSON each, and answer in lines of JSON."""
    import faulthandler

    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)  # nobody is there to answer a breakpoint()
    os.dup2(2, 1)  # what is printed on the way is no part of the report
    own = os.getpid()

    def say(what, value):
        if os.getpid() != own:
            os._exit(1)  # a fork of us, which the variant let loose
        try:
            answers.write(json.dumps((what, value)) + "\n")
            answers.flush()
        except OSError:
            os._exit(1)  # the parent is gone

    asked = json.loads(commands.readline())
    seconds = asked.pop("seconds")

    @contextlib.contextmanager
    def at_most():
        # Should the parent be killed while the variant hangs, in C code even, nobody else would end this process.
        faulthandler.dump_traceback_later(seconds + 5, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    try:
        held = _plan(asked, say, at_most)
    except (Refused, ValueError, ImportError) as error:
        return say("refused", str(error).splitlines()[0])
    except Exception as error:  # in an object that is more than a function, say
        return say("refused", first_line(error))

    line = ""

    def on_example(law, inputs, error=None):
        nonlocal line
        line = held.line(law, inputs)
        say(*(("broken", (str(error), line)) if error else ("example", line)))

    held.on_example = on_example
    say("plan", (held.laws, held.names))
    for command in commands:
        law, line = json.loads(command), ""
        try:
            with at_most():
                outcome = held.hold(law)
        except BaseException as error:  # KeyboardInterrupt too: Ctrl-C does not come here
            outcome = Outcome(law, BROKEN, message=first_line(error), line=line)
        say("outcome", vars(outcome) | {"inputs": {}})


def _plan(asked, say, at_most=contextlib.nullcontext):
    """The :class:`~recast_ref.testing.checking.Check` that is asked for; imports are made in the context ``at_most()``."""
    from .testing import checking, state  # before anything that could stand in its way

    def imported(spec):
        say("importing", spec)
        changes = []
        with state.kept(changes, state.MODES), at_most():
            function = find(spec)
        if changes:
            raise Refused(f"{spec}: its import {changes[0]}, for all code beside it; set that where training starts")
        say("importing", None)
        return function

    path, against = asked.pop("variant"), asked.pop("against")
    function = imported(path)
    against = imported(against) if ":" in against else None if against == "none" else against
    held = checking.Check(function, against=against, **asked)
    held.subject.address = _parts(path)
    return held


def find(spec):
    """The function that ``package.module:function`` names.

    Raises:
        Refused: there is none.
    """
    module, name = _parts(spec)
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, SyntaxError) as error:  # their message says it all
        raise Refused(f"{spec}: {first_line(error).partition(': ')[2]}") from error
    except BaseException as error:  # whatever else the module does while it is imported, sys.exit() too
        raise Refused(f"{spec}: its import {first_line(error)}") from error
    if not callable(found):
        raise Refused(f"{spec}: expected a function, got {type(found).__name__}")
    return found


def _parts(spec):
    module, _, name = spec.partition(":")
    if not module or not name:
        raise Refused(f"expected package.module:function, got {spec!r}")
    return module, name

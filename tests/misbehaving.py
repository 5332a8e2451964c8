"""Variants that misbehave, for ``recast-ref check``: a piece of Python each, and what the last line must say of it.

``CALLS`` misbehave when they are called, ``MODULES`` when they are imported. None may end a check with exit code 0.
"""

HEAD = """
import ctypes, os, random, signal, sys, threading, time, unittest
import numpy, pytest, torch
from recast_ref import reference

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

class Leaving(Exception):
    def __str__(self):
        sys.exit(0)

def leave():
    os._exit(0)
"""

CALLS = {  # name -> (the first lines of the variant, what its law says)
    "exits": ("sys.exit(0)", "BROKEN: raised SystemExit: 0"),
    "exits_at_once": ("os._exit(0)", "BROKEN: ended the process, with exit code 0"),
    "exits_in_a_thread": (
        "t = threading.Thread(target=leave); t.start(); t.join()",
        "BROKEN: ended the process, with exit code 0",
    ),
    "ends_pytest": ("pytest.exit('enough', returncode=0)", "BROKEN: raised Exit: enough"),
    "is_skipped": ("pytest.skip('later')", "BROKEN: raised Skipped: later"),
    "is_interrupted": ("raise KeyboardInterrupt", "BROKEN: raised KeyboardInterrupt"),
    "cannot_say_why": ("raise Mute", "BROKEN: raised Mute: (its message cannot be read)"),
    "exits_when_asked_why": ("raise Leaving", "BROKEN: raised Leaving: (its message cannot be read)"),
    "says_what_no_terminal_shows": ("raise ValueError('\\udc80 \\xe9')", "BROKEN: raised ValueError: \\udc80 \\xe9"),
    "crashes": ("ctypes.string_at(0)", "BROKEN: ended the process, by SIGSEGV"),
    "aborts": ("os.abort()", "BROKEN: ended the process, by SIGABRT"),
    "is_killed": ("os.kill(os.getpid(), signal.SIGKILL)", "BROKEN: ended the process, by SIGKILL"),
    "closes_every_file": ("os.closerange(0, 100)", "BROKEN: ended the process, with exit code 1"),
    "waits_in_c": ("ctypes.PyDLL(None).sleep(10**6)", "BROKEN: did not end within 30 s (--timeout)"),  # with the GIL
    "waits_for_a_line": ("input()", "BROKEN: raised EOFError: EOF when reading a line"),
    "asks_the_debugger": ("breakpoint()", "BROKEN: raised BdbQuit"),
    "sets_the_dtype": (
        "torch.set_default_dtype(torch.float64)",
        "BROKEN: changed torch's default dtype from torch.float32 to torch.float64",
    ),
    "answers_on_meta": ("return rewards.to('meta')", "BROKEN: advantages: answered on meta, expected cpu, where its"),
}

MODULES = {  # name -> (lines of the module, what is said)
    "exits": ("sys.exit(0)", "its import raised SystemExit: 0"),
    "exits_at_once": ("os._exit(0)", "its import ended the process, with exit code 0"),
    "is_skipped": ("pytest.skip('later', allow_module_level=True)", "its import raised Skipped: later"),
    "is_interrupted": ("raise KeyboardInterrupt", "its import raised KeyboardInterrupt"),
    "crashes": ("ctypes.string_at(0)", "its import ended the process, by SIGSEGV"),
    "waits": ("time.sleep(10**6)", "its import did not end within 30 s (--timeout)"),
    "cannot_say_why": ("raise Mute", "its import raised Mute: (its message cannot be read)"),
    "turns_gradients_off": ("torch.set_grad_enabled(False)", "its import changed torch's grad mode from True to False"),
    "names_no_arguments": ("f = lambda *all: 0", "names no arguments; it is given what it names"),
}


def variant(body):
    """The text of a module whose ``f`` misbehaves when it is called, and would hold else."""
    return f"{HEAD}\ndef f(rewards, scores):\n    {body}\n    return reference.recast(rewards, scores)\n"


def module(body):
    """The text of a module that misbehaves when it is imported, and whose ``f`` would hold."""
    return f"{HEAD}\ndef f(rewards, scores):\n    return reference.recast(rewards, scores)\n\n{body}\n"

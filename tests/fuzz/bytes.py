"""What happens to files: a copy that stopped, a disk that turned a bit, an editor with an encoding of its own, a script with a mistake."""

import codecs
import gzip

from hypothesis import strategies as st

HUGE = st.sampled_from(
    [b"1e999", b"9" * 5000, b"-1", str(2**63).encode(), b"0" * 4000 + b"1", b"nan", b"99999", b"[" * 5000]
)
ODD = st.sampled_from(
    [b"\0", b"\xff", b"\x0c", b"\x1c", "\x85".encode(), "\u2028".encode(), b"\r", b'"', b"\t", b",", b"\xed\xa0\x80"]
)
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "cp037")


@st.composite
def damaged(draw, good):
    """A few damages of the bytes of a good file."""
    for _ in range(draw(st.integers(1, 3))):
        good = draw(st.sampled_from(DAMAGES))(draw, good)
    return good


def _place(draw, data):
    return draw(st.integers(0, max(len(data) - 1, 0)))


def _flip(draw, data):
    at = _place(draw, data)
    return data[:at] + bytes(b ^ draw(st.integers(1, 255)) for b in data[at : at + 1]) + data[at + 1 :]


def _cut(draw, data):
    return data[: _place(draw, data)]


def _insert(draw, data):
    at = _place(draw, data)
    return data[:at] + draw(ODD | HUGE | st.binary(max_size=4)) + data[at:]


def _remove(draw, data):
    at = _place(draw, data)
    return data[:at] + data[at + draw(st.integers(1, 20)) :]


def _double_line(draw, data):
    lines = data.splitlines(keepends=True) or [b""]
    at = draw(st.integers(0, len(lines) - 1))
    return b"".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])


def _drop_line(draw, data):
    lines = data.splitlines(keepends=True) or [b""]
    at = draw(st.integers(0, len(lines) - 1))
    return b"".join(lines[:at] + lines[at + 1 :])


def _swap_fields(draw, data):
    lines = data.split(b"\n")
    at = draw(st.integers(0, len(lines) - 1))
    mark = draw(st.sampled_from([b"\t", b","]))
    lines[at] = mark.join(draw(st.permutations(lines[at].split(mark))))
    return b"\n".join(lines)


def _double_field(draw, data):
    """In the header, for example: then every line has one more."""
    mark = draw(st.sampled_from([b"\t", b","]))
    return b"\n".join(line and line + mark + line.split(mark)[0] for line in data.split(b"\n"))


def _another_number(draw, data):
    """In place of a whole field."""
    mark = draw(st.sampled_from([b"\t", b",", b'"', b"_"]))
    fields = data.split(mark)
    fields[draw(st.integers(0, len(fields) - 1))] = draw(HUGE)
    return mark.join(fields)


def _encode(draw, data):
    return data.decode("utf-8", errors="replace").encode(draw(st.sampled_from(ENCODINGS)), errors="replace")


def _with_bom(draw, data):
    return codecs.BOM_UTF8 + data


def _zip(draw, data):
    return gzip.compress(data, mtime=0)


DAMAGES = (
    *(_flip, _cut, _insert, _remove, _double_line, _drop_line),
    *(_swap_fields, _double_field, _another_number, _encode, _with_bom, _zip),
)

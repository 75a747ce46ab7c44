"""What the tests of hostile files share.

A file from elsewhere is data: it is read, or refused in one line that names it. None runs code, hangs or fills the
memory. What each reader does with sound files, and with the usual damage, is in the reader's own tests.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from plumage.errors import UserError

fuzzed = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_or_refused(call, file):
    """Return what ``call`` returns, or None if it refuses ``file`` in one line that names it."""
    try:
        return call()
    except UserError as error:
        message = str(error)
    assert str(file) in message, message
    assert len(message.splitlines()) == 1, message
    return None


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """Draw ``whole`` with a few bytes changed, removed, doubled or inserted, and perhaps cut short."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.integers(0, 4))
        odd = st.sampled_from(
            [b"\0", b"\xff" * 4, b"\n", b'"', b",", b"[", b"9" * 30, b"-1", b"NaN", content[start:end] * 2]
        )
        content[start:end] = draw(st.binary(max_size=4) | odd)
    return bytes(content[: draw(st.just(None) | st.integers(0, len(content)))])

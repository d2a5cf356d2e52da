"""Bytes of a log as lines: any line end, no colours, none too long, and the last one maybe cut off."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

MOST_LINE_BYTES = 16 * 1024  # no trainer's line is longer; a dump of binary data is
_CHUNK_BYTES = 256 * 1024
_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_ENDS = re.compile(rb"\r\n|\n|\r")
# Who speaks: torch and torchrun, srun --label, mpirun --tag-output.
_RANK = re.compile(r"\[rank ?(?P<torch>\d+)\]: ?|\[\d+,(?P<mpi>\d+)\]<std(?:out|err)>: ?|(?P<srun>\d+): ")
_LOCAL = re.compile(r"\[(?:default|[a-z]+)\d+\]: ?")


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; `is_whole` is false where it was cut off or is too long to trust."""

    text: str
    is_whole: bool = True


class LineSplitter:
    """Splits a stream of bytes that comes in pieces, as a pipe gives them; holds one unfinished line at most.

    A carriage return ends a line too: progress bars write one after every step.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._is_skipping = False

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """Lines that end in this piece."""
        data = self._rest + chunk
        # A carriage return at the very end may be half of a line end: keep it for the next piece.
        held = b"\r" if data.endswith(b"\r") else b""
        *ended, rest = _ENDS.split(data[: len(data) - len(held)])
        self._rest = rest + held
        for each in ended:
            if not self._is_skipping:
                yield _line(each)
            self._is_skipping = False
        if len(self._rest) > MOST_LINE_BYTES:
            if not self._is_skipping:
                yield _line(self._rest)
            self._rest, self._is_skipping = b"", True

    def end(self) -> Iterator[Line]:
        """The last line, if nothing ended it."""
        rest, self._rest = self._rest, b""
        if rest and not self._is_skipping:
            yield Line(_line(rest).text, is_whole=rest.endswith(b"\r"))


def lines_of(stream: IO[bytes]) -> Iterator[Line]:
    """Every line of a file that is open for reading bytes."""
    splitter = LineSplitter()
    while chunk := stream.read(_CHUNK_BYTES):
        yield from splitter.feed(chunk)
    yield from splitter.end()


def _line(data: bytes) -> Line:
    text = data[:MOST_LINE_BYTES].decode("utf-8", errors="replace").rstrip("\r")
    return Line(_COLOURS.sub("", text), is_whole=len(data) <= MOST_LINE_BYTES)


def speaker(text: str) -> tuple[int | None, str]:
    """The global rank that a launcher wrote before a line (None: none did), and the line without it."""
    rank = None
    while match := _RANK.match(text) or _LOCAL.match(text):
        numbers = [int(number) for number in match.groupdict().values() if number is not None]
        rank = numbers[0] if numbers else rank
        text = text[match.end() :]
    return rank, text

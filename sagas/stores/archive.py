"""Archives of sagas that were deleted: a file of lines, each the JSON of one saga with all that was known of it.

Payloads are in it as they were stored: what is encrypted in the tables is encrypted in the archive.
"""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from sagas.checkpoints import DeadLetter, HistoryEntry, SagaRecord
from sagas.errors import ConfigurationError
from sagas.stores.codecs import PLAIN, Codec, decoded, input_of

__all__ = ["Archive", "Archived", "load_archive"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """One saga as it was when it was deleted."""

    record: SagaRecord  #: with its steps
    history: tuple[HistoryEntry, ...]
    dead_letters: tuple[DeadLetter, ...]


class Archive:
    """A new file that sagas are written to. What `write` has returned for survives a crash, also of the machine.

    A name that ends with `.gz` is compressed. Raises `ConfigurationError` for a file that is there already.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file: IO[bytes] = self.path.open("xb")
        except FileExistsError:
            raise ConfigurationError(
                f"the archive {self.path} is there already, and is never written to twice: give another name. "
                "If the run that wrote it was cut off, keep it: what it holds is whole, and may also be in the next"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"the archive {self.path} cannot be written: {error.strerror}") from error
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the file itself may be gone after a crash of the machine
        finally:
            os.close(folder)

    def write(self, sagas: Sequence[Archived]) -> None:
        """Write sagas, and return once they are on the disk. Raises `OSError` where they are not."""
        lines = b"".join(msgspec.json.encode(saga) + b"\n" for saga in sagas)
        # Each call is a compressed file of its own, and such files can simply follow one another.
        self._file.write(gzip.compress(lines, 6) if self.path.suffix == ".gz" else lines)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it; one that holds nothing is removed."""
        self._file.close()
        with suppress(FileNotFoundError):
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def load_archive(path: str | Path, codec: Codec = PLAIN) -> Iterator[Archived]:
    """Return the sagas of an archive, in the order in which they were deleted.

    `codec`: what decrypts their payloads, with the keys of that time. `sagas.stores.codecs.AS_STORED` leaves them.
    A run that was cut off may have left half a saga at the end; that one was not deleted, and is left out here, with a
    warning. Raises `PayloadUnreadable`; `ConfigurationError` for a file that is no archive.
    """
    for number, line in enumerate(_lines(Path(path)), 1):
        try:
            archived = msgspec.json.decode(line, type=Archived)
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"{path}, line {number}, is not a saga of an archive: {error}") from error
        yield replace(archived, record=_decoded(archived.record, codec))


def _lines(path: Path) -> Iterator[bytes]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        try:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                yield line
            else:
                return
        except EOFError:  # half a compressed piece
            pass
    logger.warning("%s ends within a saga: the run that wrote it was cut off before it deleted that one", path)


def _decoded(record: SagaRecord, codec: Codec) -> SagaRecord:
    steps = {name: replace(step, **decoded(vars(step), record.id, name, codec)) for name, step in record.steps.items()}
    return replace(record, input=codec.decode(record.input, input_of(record.id)), steps=steps)

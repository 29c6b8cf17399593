"""Draw the states of sagas and steps from the tables in `sagas.checkpoints`.

`python docs/generate_states.py` writes docs/states.md and the drawing in README.md.
With `--check` it writes nothing, and exits with 1 when one of them is out of date.
"""  # noqa: INP001 - a script, not a package

from __future__ import annotations

import argparse
import enum
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from sagas.checkpoints import SAGA_MOVES, STEP_MOVES, TERMINAL, SagaStatus, StepStatus

__all__ = ["render"]

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
STATES = ROOT / "docs" / "states.md"

BEGIN = "<!-- states:begin -->"
END = "<!-- states:end -->"

Status = TypeVar("Status", bound=enum.StrEnum)
Moves = Mapping[Status, Mapping[Status, str]]


def render() -> dict[Path, str]:
    """Return what each file should hold, by its path."""
    return {STATES: _page(), README: _with_drawing(README.read_text(encoding="utf-8"))}


def _page() -> str:
    return f"""# States

Drawn from `SAGA_MOVES` and `STEP_MOVES` in `sagas/checkpoints.py` by `python docs/generate_states.py`. Do not edit.
No other move is possible: the record refuses it.

## A saga

{_drawing(SAGA_MOVES, SagaStatus.PENDING)}

{_table(SAGA_MOVES)}

A saga that is COMPENSATED has nothing left to do, but is not sealed: an action that was given up may still report its
success. Then the saga goes back to COMPENSATING and undoes that action once more.

## A step

{_drawing(STEP_MOVES, StepStatus.PENDING)}

{_table(STEP_MOVES)}

No status of a step is terminal in itself: what a step still needs depends on the direction of its saga.
"""


def _with_drawing(text: str) -> str:
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README.name} has no {BEGIN} ... {END}")
    return f"{head}{BEGIN}\n{_drawing(SAGA_MOVES, SagaStatus.PENDING)}\n{END}{tail}"


def _drawing(moves: Moves[Status], first: Status) -> str:
    arrows = [f"    {source} --> {target}" for source, targets in moves.items() for target in targets]
    ends = [f"    {source} --> [*]" for source in moves if source in TERMINAL]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *arrows, *ends, "```"])


def _table(moves: Moves[Status]) -> str:
    rows = ["| from | to | why |", "|---|---|---|"]
    for source, targets in moves.items():
        name = f"{source} (terminal)" if source in TERMINAL else str(source)
        rows += [f"| {name} | {target} | {why} |" for target, why in targets.items()]
        if not targets:
            rows.append(f"| {name} | | |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the states of sagas and steps.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file is out of date")
    check = parser.parse_args().check
    stale = [(path, text) for path, text in render().items() if _read(path) != text]
    for path, text in stale:
        if not check:
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}\n")
    return 1 if check and stale else 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())

"""`tid gc`: delete what nobody needs any more. `python -m store.upkeep.gc [--dry-run] [--strangers]`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from store.db import Database
from store.errors import StoreError
from store.settings import Settings, SettingsError, load_settings
from store.upgrade import open_current
from store.upkeep.garbage import Kind, Waste, find
from store.upkeep.starting import told


class Total(NamedTuple):
    number: int = 0
    num_bytes: int = 0


def collect(
    database: Database,
    settings: Settings,
    *,
    dry_run: bool = False,
    strangers: bool = False,
    tell: Callable[[Waste], None] = lambda _: None,
) -> dict[Kind, Total]:
    """Delete what may go, and say how much it was, by kind; strangers are counted, and stay unless they are named."""
    totals = dict.fromkeys(Kind, Total())
    for waste in find(database, settings):
        tell(waste)
        number, num_bytes = totals[waste.kind]
        totals[waste.kind] = Total(number + waste.number, num_bytes + waste.num_bytes)
        if not dry_run and (strangers or waste.kind is not Kind.STRANGERS):
            waste.delete()
    return totals


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tid gc", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="list what would go, and delete nothing")
    parser.add_argument("--strangers", action="store_true", help="also files of jobs that this database does not know")
    asked = parser.parse_args(arguments)
    try:
        settings = load_settings()
        database = open_current(settings.database_url)
        totals = collect(database, settings, dry_run=asked.dry_run, strangers=asked.strangers, tell=_tell)
    except SQLAlchemyError as error:
        sys.stderr.write(f"tid gc: {told(error, load_settings())}\n")
        return 1
    except (SettingsError, StoreError, OSError) as error:
        sys.stderr.write(f"tid gc: {str(error).splitlines()[0]}\n")
        return 1
    sys.stdout.write(_summary(totals, dry_run=asked.dry_run, strangers=asked.strangers))
    return 0


def _tell(waste: Waste) -> None:
    sys.stdout.write(f"{waste.kind}: {waste.name} ({waste.number:,}, {human(waste.num_bytes)})\n")


def _summary(totals: dict[Kind, Total], *, dry_run: bool, strangers: bool) -> str:
    gone = {kind: total for kind, total in totals.items() if strangers or kind is not Kind.STRANGERS}
    num_bytes = sum(total.num_bytes for total in gone.values())
    number = sum(total.number for total in gone.values())
    lines = [f"{'would free' if dry_run else 'freed'} {human(num_bytes)} ({num_bytes:,} bytes) of {number:,} things"]
    kept = totals[Kind.STRANGERS]
    if not strangers and kept.number:
        lines.append(
            f"kept {kept.number:,} {Kind.STRANGERS} ({human(kept.num_bytes)}): if no other database has its files "
            "there, `tid gc --strangers` deletes them"
        )
    return "".join(f"{line}\n" for line in lines)


def human(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


if __name__ == "__main__":
    sys.exit(main())

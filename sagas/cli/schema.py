"""`celery -A yourapp sagas events schema ...`: compare this code's message types with the schema registry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from sagas.cli.command import Refusal
from sagas.events import Events
from sagas.events.schema_registry import Finding, Schema, SchemaRegistry, review
from sagas.events.schema_registry import register as register_types

__all__ = ["schema"]

_format = click.option("--format", "format_", default="json", show_default=True, help="One of the registry's formats.")


@click.group()
@click.pass_obj
def schema(obj: Any) -> None:
    """Manage the schemas of events and commands."""
    if obj.app.sagas.events.registry is None:
        raise Refusal(
            "these events have no schema registry. Pass one: Events(..., registry=SqlSchemaRegistry(store.engine)), "
            "from sagas.events.schema_registry.sql"
        )


@schema.command()
@_format
@click.pass_obj
def check(obj: Any, format_: str) -> None:
    """Show what `register` would do. Changes nothing.

    The exit code is 1 if something is refused or this code cannot read it: use it in CI.
    """
    events = obj.app.sagas.events
    _report(review(events.types, _registry(events), owners=events.services, format=format_))


@schema.command()
@_format
@click.pass_obj
def register(obj: Any, format_: str) -> None:
    """Register the types that the services in this code own.

    A refused type does not stop the others; the exit code is then 1.
    """
    events = obj.app.sagas.events
    _report(register_types(events.types, _registry(events), owners=events.services, format=format_))


@schema.command("list")
@click.pass_obj
def list_(obj: Any) -> None:
    """List the subjects, each with its newest revision."""
    registry = _registry(obj.app.sagas.events)
    for subject in registry.subjects():
        latest = registry.latest(subject)
        if latest is not None:
            click.echo(f"{subject}  {latest.revision}  {latest.format}  {latest.fingerprint[:12]}")


@schema.command()
@click.argument("subject")
@click.option("--revision", type=int, help="By default the newest.")
@click.pass_obj
def show(obj: Any, subject: str, revision: int | None) -> None:
    """Print the definition of SUBJECT as JSON."""
    revisions = _revisions(_registry(obj.app.sagas.events), subject)
    found = _pick(revisions, revision)
    click.echo(json.dumps(found.definition, indent=2, ensure_ascii=False))


@schema.command()
@click.argument("subject")
@click.option("--from", "old", type=int, help="A revision; by default the newest.")
@click.option("--to", "new", type=int, help="A revision; by default what this code declares.")
@click.pass_obj
def diff(obj: Any, subject: str, old: int | None, new: int | None) -> None:
    """Show what readers and writers of two revisions of SUBJECT do not accept from each other."""
    events: Events = obj.app.sagas.events
    registry = _registry(events)
    revisions = _revisions(registry, subject)
    before = _pick(revisions, old)
    how = registry.format(before.format)
    if new is None:
        after, name = _declared(events, registry, subject, before.format), "this code"
    else:
        after, name = _pick(revisions, new).definition, f"revision {new}"
    known = f"revision {before.revision}"
    for heading, found in (
        ("BACKWARD", how.compare(before.definition, after, known, name)),
        ("FORWARD", how.compare(after, before.definition, name, known)),
    ):
        click.echo(f"{heading}: {'compatible' if not found else ''}".rstrip())
        for difference in found:
            click.echo(f"  {difference}")


def _registry(events: Events) -> SchemaRegistry:
    assert events.registry is not None  # the group checks it
    return events.registry


def _revisions(registry: SchemaRegistry, subject: str) -> Sequence[Schema]:
    revisions = registry.revisions(subject)
    if not revisions:
        known = ", ".join(registry.subjects()) or "none"
        raise Refusal(f"there is no subject {subject!r}. The subjects are: {known}")
    return revisions


def _pick(revisions: Sequence[Schema], number: int | None) -> Schema:
    for each in revisions:
        if each.revision == (revisions[-1].revision if number is None else number):
            return each
    there = ", ".join(str(each.revision) for each in revisions)
    raise Refusal(f"{revisions[0].subject} has no revision {number}. It has: {there}")


def _declared(events: Events, registry: SchemaRegistry, subject: str, format_: str) -> Any:
    how = registry.format(format_)
    for declared in events.types:
        if how.subject(declared) == subject:
            return how.derive(declared)
    raise Refusal(f"this code declares no message for {subject!r}. Pass a revision with --to")


def _report(findings: Sequence[Finding]) -> None:
    for finding in findings:
        number = "" if finding.revision is None else f" (revision {finding.revision})"
        click.echo(f"{finding.verdict:<10} {finding.subject}{number}")
        for reason in finding.reasons:
            click.echo("           " + reason.replace("\n", "\n           "))
        for warning in finding.warnings:
            click.echo(f"           warning: {warning}")
    bad = sum(not finding.ok for finding in findings)
    if bad:
        click.echo(f"{bad} of {len(findings)} are refused or unreadable", err=True)
        raise click.exceptions.Exit(1)

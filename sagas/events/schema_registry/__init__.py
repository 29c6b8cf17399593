"""The schema registry: what messages look like, and which changes of that nobody notices.

The backends are modules of their own: `sql`, `confluent` (extra `confluent`), `glue` (extra `glue`). So is `avro`.
"""

from sagas.events.schema_registry.compatibility import Difference, Mode, Rule
from sagas.events.schema_registry.derive import schema_of
from sagas.events.schema_registry.registry import JSON, Format, Schema, SchemaRegistry
from sagas.events.schema_registry.review import Finding, ReviewResult, register, review

__all__ = [
    "SchemaRegistry",
    "Schema",
    "schema_of",
    # what may change
    "Mode",
    "Difference",
    "Rule",
    # holding code against a registry
    "review",
    "register",
    "Finding",
    "ReviewResult",
    # formats
    "Format",
    "JSON",
]

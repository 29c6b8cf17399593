"""The schema registry: stores the schemas of messages and detects incompatible changes.

Each backend is a separate module: `sql`, `confluent` (extra `confluent`) and `glue` (extra `glue`). So is `avro`.
"""

from sagas.events.schema_registry.compatibility import Difference, Mode, Rule
from sagas.events.schema_registry.derive import schema_of
from sagas.events.schema_registry.registry import JSON, Format, Schema, SchemaRegistry
from sagas.events.schema_registry.review import Finding, ReviewResult, register, review

__all__ = [
    "SchemaRegistry",
    "Schema",
    "schema_of",
    # compatibility
    "Mode",
    "Difference",
    "Rule",
    # comparing code with a registry
    "review",
    "register",
    "Finding",
    "ReviewResult",
    # formats
    "Format",
    "JSON",
]

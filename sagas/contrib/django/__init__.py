"""Sagas in a Django project: `"sagas.contrib.django"` in `INSTALLED_APPS`, and a `sagas.py` in each app with sagas.

>>> from sagas.contrib.django import sagas
"""

from __future__ import annotations

from typing import cast

from django.utils.functional import SimpleLazyObject

from sagas.app import Sagas
from sagas.contrib.django.project import PROJECT
from sagas.contrib.django.transactions import atomic, engine, publish, send

__all__ = ["sagas", "atomic", "publish", "send", "engine"]

#: The project's `Sagas`. You can import it anywhere; using it needs Django to be set up.
sagas: Sagas = cast("Sagas", SimpleLazyObject(PROJECT.get))

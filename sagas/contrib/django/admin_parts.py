"""What the pages of the admin share: how a reason is asked for, how moments are shown, and who is there."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import pgettext_lazy

from sagas.operations import LONGEST_REASON

__all__ = ["ReadOnlyAdmin", "ReasonForm", "local", "operator"]


class ReasonForm(forms.Form):
    """Asks why an operator does something."""

    reason = forms.CharField(
        label=pgettext_lazy("saga", "Reason"),
        max_length=LONGEST_REASON,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 60}),
        help_text=pgettext_lazy("saga", "Kept in the saga's history, with your name."),
    )


def local(at: datetime) -> datetime:
    """Return a moment as the lists of the admin show it: in the current time zone, or without one in the default."""
    zone = timezone.get_current_timezone() if settings.USE_TZ else timezone.get_default_timezone()
    local = at.astimezone(zone)
    return local if settings.USE_TZ else local.replace(tzinfo=None)


def operator(request: HttpRequest) -> str:
    """Return the name that is kept of who did something."""
    return str(request.user.get_username())


class ReadOnlyAdmin(admin.ModelAdmin):
    """Shows rows that only the library itself adds, changes and deletes."""

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

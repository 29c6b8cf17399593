"""What sagas ask people, in the admin: the links on the page of a saga, the form, and the filter of the list.

The groups that a `Wait` names are groups of Django's users. A superuser belongs to all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import uuid_utils
from django import forms
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Q
from django.http import Http404, HttpRequest
from django.urls import reverse
from django.utils.translation import pgettext, pgettext_lazy

from sagas.approvals import Approvals, PendingApproval
from sagas.checkpoints import SagaSummary, StepStatus
from sagas.contrib.django.admin_parts import local
from sagas.contrib.django.models import Step
from sagas.errors import DefinitionMissing, InvalidInput, SagaNotFound
from sagas.forms import FieldKind, Form, FormField, InvalidForm
from sagas.operations import Operations

__all__ = ["AnswerForm", "asked", "asks", "may_answer", "waiting_for_approval"]

#: The name of the hidden field that tells a form that is sent twice from another answer. No payload has this field.
_NUMBER = "form-id"


class AnswerForm(forms.Form):
    """Asks for the payload of a `Wait`."""

    def __init__(self, description: Form, data: Any = None) -> None:
        super().__init__(data)
        self.description = description
        self.payload: dict[str, str] = {}
        number = forms.CharField(required=False, max_length=100, widget=forms.HiddenInput, initial=_new_number)
        self.fields = {_NUMBER: number, **{each.name: _field(each) for each in description.fields}}

    @property
    def number(self) -> str:
        return str(self.cleaned_data.get(_NUMBER) or _new_number())

    def clean(self) -> dict[str, Any]:
        """Read the answers as the payload's type, so that each problem is shown at its field."""
        self.payload = {each.name: self.cleaned_data.get(each.name, "") for each in self.description.fields}
        if not self.errors:
            try:
                self.description.read(self.payload)
            except InvalidForm as error:
                for name, problem in error.errors.items():
                    self.add_error(name or None, problem)
        return dict(self.cleaned_data)


def _new_number() -> str:
    return str(uuid_utils.uuid7())


def _field(field: FormField) -> forms.Field:
    about = {
        FieldKind.JSON: pgettext_lazy("saga", "JSON."),
        FieldKind.DATETIME: pgettext_lazy("saga", "Such as 2026-01-31T14:00:00+01:00."),
    }.get(field.kind, "")
    options = {
        "label": field.label,
        "required": field.required,
        "initial": field.initial,
        "help_text": f"{field.help} {about}".strip(),
    }
    if field.kind is FieldKind.CHOICE:
        is_bool = all(isinstance(each.value, bool) for each in field.choices)
        labels = {each.text: each.label for each in field.choices}
        if is_bool:
            labels = {"true": pgettext("saga", "Yes"), "false": pgettext("saga", "No")}
        return forms.ChoiceField(choices=[("", "---------"), *labels.items()], **options)
    if field.kind in (FieldKind.TEXT, FieldKind.JSON):
        return forms.CharField(strip=False, widget=forms.Textarea(attrs={"rows": 3, "cols": 60}), **options)
    kind = field.kind if field.kind in (FieldKind.DATE, FieldKind.TIME) else "text"
    return forms.CharField(widget=forms.TextInput(attrs={"type": kind}), **options)


def may_answer(request: HttpRequest, pending: PendingApproval) -> bool:
    """Return whether the user may answer: a member of one of the groups, or a superuser."""
    user = request.user
    return bool(user.is_active) and (
        bool(user.is_superuser) or pending.is_for(user.groups.values_list("name", flat=True))
    )


def asks(request: HttpRequest, operations: Operations, record: SagaSummary) -> Sequence[dict[str, Any]]:
    """Return what the page of a saga shows of its questions."""
    return [
        {
            "wait": pending.wait,
            "approvers": ", ".join(sorted(pending.approvers)),
            "until": pending.until and local(pending.until),
            "url": reverse("admin:sagas_saga_answer", args=[record.id, pending.wait])
            if may_answer(request, pending)
            else "",
        }
        for pending in Approvals(operations).of(record)
    ]


def asked(request: HttpRequest, operations: Operations, saga_id: str, wait: str) -> PendingApproval:
    """Return a question that the user may answer. Raises `Http404` and `PermissionDenied`."""
    try:
        pending = Approvals(operations).get(saga_id, wait)
    except (SagaNotFound, InvalidInput, DefinitionMissing) as error:
        raise Http404(str(error)) from error
    if not may_answer(request, pending):
        raise PermissionDenied
    return pending


def waiting_for_approval(operations: Operations) -> Q:
    """Return the condition for sagas that ask people something now."""
    found = Q(pk__in=())
    for name, wait in Approvals(operations).kinds():
        open_now = Step.objects.filter(saga=OuterRef("pk"), node=wait, status=StepStatus.WAITING)
        found |= Q(name=name) & Exists(open_now)
    return found

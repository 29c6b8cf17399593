"""Sagas in the admin: to look at, and for operators to act on, through the same desk as everywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html

from sagas.checkpoints import Direction, SagaStatus, SagaSummary
from sagas.contrib.django.models import DeadLetter, Saga
from sagas.contrib.django.project import PROJECT
from sagas.desk import Action, Choice, Desk
from sagas.errors import SagaError, SagaNotFound
from sagas.stores import Filter
from sagas.stores.lists import MANY_STALLS

__all__ = ["SagaAdmin"]

#: Sagas that one bulk action may be about.
_MOST = 1000

#: What each action is called, and what it does, for who presses the button.
_WORDS = {
    Action.RETRY: ("Retry", "Try the stuck step again, with all attempts."),
    Action.SKIP: ("Skip", "Leave the stuck step as it is, and go on with the rest."),
    Action.DONE: ("Mark done", "Take the stuck step as done, or undone, by hand."),
    Action.COMPENSATE: ("Compensate", "Turn the saga back, also when it is stuck at its pivot: what began is undone."),
    Action.CANCEL: ("Cancel", "Turn the saga back: what began is undone."),
    Action.RESUME: ("Resume", "Launch what is left of it now."),
}

#: Not offered for many at once: what was done by hand differs from saga to saga.
_ONE_BY_ONE = (Action.DONE,)


class _Status(admin.SimpleListFilter):
    title = "status"
    parameter_name = "status"

    def lookups(self, _request: HttpRequest, _admin: Any) -> list[tuple[str, str]]:
        return [("attention", "Needs a person"), *((str(status), str(status)) for status in SagaStatus)]

    def queryset(self, _request: HttpRequest, queryset: Any) -> Any:
        match self.value():
            case None:
                return queryset
            case "attention":  # as `sagas.stores.lists` has it
                letters = DeadLetter.objects.filter(saga=OuterRef("pk"), resolved_at=None)
                still = Q(wake_at__isnull=False, stalls__gte=MANY_STALLS)
                return queryset.filter(Q(status=SagaStatus.STUCK) | Exists(letters) | still)
            case status:
                return queryset.filter(status=status)


class _ReasonForm(forms.Form):
    reason = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 3, "cols": 60}), help_text="Kept in the saga's history, with your name."
    )


class _ResultForm(_ReasonForm):
    result = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 60}),
        help_text="JSON: what the step would have returned, where later steps need it.",
    )

    def clean_result(self) -> Any:
        # Not a JSONField: what that returns for a string is no plain string.
        text = self.cleaned_data["result"]
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise forms.ValidationError(f"This is not JSON: {error}") from error


@admin.register(Saga)
class SagaAdmin(admin.ModelAdmin):
    """Sagas: a list to find them in, and a page for each."""

    list_display = ("key", "name", "coloured_status", "shown_error", "created_at")
    list_filter = (_Status, "name")
    search_fields = ("^id", "=key", "=correlation_id")
    search_help_text = "The start of an id, a whole key or a whole correlation id"
    show_full_result_count = False
    list_per_page = 50

    class Media:
        css = {"all": ("sagas/admin.css",)}

    @admin.display(description="status", ordering="status")
    def coloured_status(self, saga: Saga) -> str:
        return _badge(saga.status)

    @admin.display(description="error")
    def shown_error(self, saga: Saga) -> str:
        return _short(saga.error or "")

    # -- who may do what ----------------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Tell whether a user may retry, skip, cancel and so on. Looking takes the permission to view."""
        return bool(request.user.has_perm("sagas.operate_saga"))

    # -- one saga -----------------------------------------------------------------------------------------------

    def get_urls(self) -> list[Any]:
        act = self.admin_site.admin_view(self.act_view)
        return [path("<str:saga_id>/<str:action>/do/", act, name="sagas_saga_act"), *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",  # noqa: ARG002
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show everything of one saga, and the buttons for what may be done to it as it is now."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        desk, record = _desk_and(object_id)
        payloads = desk.store.payloads(object_id)
        buttons = [_button(record, choice) for choice in desk.choices(record)]
        steps = list(record.steps.values())
        context = {
            **self.admin_site.each_context(request),
            **(extra_context or {}),
            "opts": self.opts,
            "title": f"{record.name} {record.key}",
            "record": record,
            "badge": _badge(record.status),
            "buttons": buttons if self.has_operate_permission(request) else [],
            "input": _json(desk.shown(payloads.input)),
            "steps": [
                (step, _badge(step.status), _json(desk.shown(payloads.results.get(step.name)))) for step in steps
            ],
            "history": desk.store.history(record.id),
            "letters": desk.store.dead_letters(record.id, unresolved=False),
            "media": self.media,
        }
        return TemplateResponse(request, "admin/sagas/saga/detail.html", context)

    def act_view(self, request: HttpRequest, saga_id: str, action: str) -> HttpResponse:
        """Ask for the reason, then do it."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        if action not in list(Action):
            raise Http404
        desk, record = _desk_and(saga_id)
        choice = Choice(Action(action), request.GET.get("step") or None)
        back = reverse("admin:sagas_saga_change", args=[saga_id], current_app=self.admin_site.name)
        with_result = choice.action is Action.DONE and record.direction is Direction.FORWARD
        form = (_ResultForm if with_result else _ReasonForm)(request.POST or None)
        if request.method == "POST" and form.is_valid():
            result = form.cleaned_data.get("result")
            try:
                after = desk.act(
                    choice.action, saga_id, by=_name(request), reason=form.cleaned_data["reason"], step=choice.step,
                    result=result,
                )  # fmt: skip
            except SagaError as error:
                messages.error(request, str(error))
            else:
                self._log(request, saga_id, choice, form.cleaned_data["reason"])
                messages.success(request, f"{_title(choice)}: the saga is {after.status} now.")
            return HttpResponseRedirect(back)
        return self._ask(request, form, choice, [record], back)

    # -- many sagas ---------------------------------------------------------------------------------------------

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Offer what operators do to many, to those who may."""
        if not self.has_operate_permission(request):
            return {}
        return {
            str(action): (_bulk(action), str(action), f"{_WORDS[action][0]} selected sagas…")
            for action in Action
            if action not in _ONE_BY_ONE
        }

    def act_on_selected(self, request: HttpRequest, queryset: Any, action: Action) -> HttpResponse | None:
        """Ask for the reason, then do it to each that allows it."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        ids = list(queryset.order_by("id").values_list("id", flat=True)[: _MOST + 1])
        if len(ids) > _MOST:
            messages.error(request, f"More than {_MOST} sagas are selected. Narrow the list first.")
            return None
        form = _ReasonForm(request.POST if "reason" in request.POST else None)
        choice = Choice(action)
        if not form.is_valid():
            chosen = Filter(ids=tuple(ids))
            records = _desk().store.select(chosen, limit=_MOST) if ids else []
            return self._ask(request, form, choice, records, request.get_full_path())
        reason, done = form.cleaned_data["reason"], 0
        where = Filter(ids=tuple(ids))
        for outcome in _desk().act_on_all(action, where, by=_name(request), reason=reason, limit=_MOST):
            if outcome.error is None:
                done += 1
                self._log(request, outcome.record.id, choice, reason)
            else:
                messages.warning(request, f"{outcome.record.name} {outcome.record.key}: {outcome.error}")
        messages.success(request, f"{_title(choice)}: done to {done} of {len(ids)} sagas.")
        return None

    def _ask(
        self, request: HttpRequest, form: forms.Form, choice: Choice, records: Sequence[SagaSummary], back: str
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": _title(choice),
            "what": _WORDS[choice.action][1],
            "form": form,
            "records": [(record, _badge(record.status)) for record in records],
            "selected": request.POST.getlist("_selected_action"),
            "across": request.POST.get("select_across", "0"),
            "bulk": request.POST.get("action", ""),
            "back": back,
            "media": self.media + form.media,
        }
        return TemplateResponse(request, "admin/sagas/saga/reason.html", context)

    def _log(self, request: HttpRequest, saga_id: str, choice: Choice, reason: str) -> None:
        self.log_change(request, Saga.objects.get(pk=saga_id), f"{_title(choice)}: {reason}")


def _bulk(action: Action) -> Any:
    def act(model_admin: SagaAdmin, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return model_admin.act_on_selected(request, queryset, action)

    return act


def _desk() -> Desk:
    return Desk(PROJECT.get())


def _desk_and(saga_id: str) -> tuple[Desk, SagaSummary]:
    desk = _desk()
    try:
        return desk, desk.store.summary(saga_id)
    except SagaNotFound as error:
        raise Http404(str(error)) from error


def _name(request: HttpRequest) -> str:
    return str(request.user.get_username())


def _title(choice: Choice) -> str:
    return _WORDS[choice.action][0] + (f" {choice.step}" if choice.step else "")


def _button(record: SagaSummary, choice: Choice) -> dict[str, str]:
    url = reverse("admin:sagas_saga_act", args=[record.id, choice.action])
    return {
        "url": f"{url}?{urlencode({'step': choice.step})}" if choice.step else url,
        "title": _title(choice),
        "what": _WORDS[choice.action][1],
    }


def _badge(status: str) -> str:
    badge: str = format_html('<span class="saga-status saga-{}">{}</span>', status.lower(), status)
    return badge


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, indent=2, ensure_ascii=False)


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

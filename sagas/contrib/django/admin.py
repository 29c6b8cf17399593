"""Sagas in the admin: a list and a page for each saga, and the actions of operators through `Operations`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import BadRequest, PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Exists, OuterRef, Q, Subquery
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import translation
from django.utils.html import format_html
from django.utils.translation import npgettext, pgettext, pgettext_lazy

from sagas.approvals import Approvals
from sagas.checkpoints import DeadLetter as Letter
from sagas.checkpoints import Direction, HistoryEntry, SagaStatus, SagaSummary, StepRecord, StepStatus
from sagas.contrib.django.admin_approvals import AnswerForm, asked, asks, waiting_for_approval
from sagas.contrib.django.admin_parts import ReadOnlyAdmin, ReasonForm, local, operator
from sagas.contrib.django.admin_schedules import ScheduleAdmin
from sagas.contrib.django.models import DeadLetter, Saga, Step
from sagas.contrib.django.project import PROJECT
from sagas.errors import SagaError, SagaNotFound
from sagas.operations import Operations, pretty
from sagas.operator_actions import Action, AllowedAction
from sagas.outline import steps_of
from sagas.stores import Filter
from sagas.stores.lists import MANY_IDLE_CHECKS
from sagas.text import is_clean
from sagas.values import parse

__all__ = ["SagaAdmin", "ScheduleAdmin"]

#: The most sagas in one bulk action.
_MOST = 1000

#: History entries on the page of a saga, and per page of its full history.
_LAST = 20
_PAGE = 100

#: The filters that the list's URL may contain. Any other, above all on inputs, could be used to guess hidden values.
_LOOKUPS = {
    **dict.fromkeys(("id", "name", "key", "correlation_id", "status"), ("exact", "in", "startswith", "istartswith")),
    "error": ("icontains", "isnull"),
    **dict.fromkeys(("created_at", "updated_at"), ("date", "gt", "gte", "lt", "lte")),
    "version": ("exact", "in", "gt", "gte", "lt", "lte"),
}

# Not in the model's Meta: each change there would need a migration.
Saga._meta.verbose_name = pgettext_lazy("saga", "saga")  # noqa: SLF001 - as Django calls it
Saga._meta.verbose_name_plural = pgettext_lazy("saga", "sagas")  # noqa: SLF001


class _Status(admin.SimpleListFilter):
    title = pgettext_lazy("saga", "status")
    parameter_name = "status"

    def lookups(self, _request: HttpRequest, _admin: Any) -> list[tuple[str, str]]:
        attention = pgettext("saga", "Needs a person")
        approval = pgettext("saga", "Waits for an approval")
        return [
            ("attention", attention),
            ("approval", approval),
            *((str(status), str(status)) for status in SagaStatus),
        ]

    def queryset(self, _request: HttpRequest, queryset: Any) -> Any:
        match self.value():
            case None:
                return queryset
            case "attention":  # the same as in `sagas.stores.lists`
                letters = DeadLetter.objects.filter(saga=OuterRef("pk"), resolved_at=None)
                idle = Q(next_check_at__isnull=False, idle_checks__gte=MANY_IDLE_CHECKS)
                return queryset.filter(Q(status=SagaStatus.STUCK) | Exists(letters) | idle)
            case "approval":
                forward = SagaStatus.PENDING, SagaStatus.RUNNING
                return queryset.filter(waiting_for_approval(_operations()), status__in=forward)
            case status:
                return queryset.filter(status=status)


class _Name(admin.AllValuesFieldListFilter):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.title = pgettext("saga", "saga")  # "name" alone would be unclear


class _ResultForm(ReasonForm):
    result = forms.CharField(
        label=pgettext_lazy("saga", "Result"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 60}),
        help_text=pgettext_lazy("saga", "The step's result as JSON, if later steps need it."),
    )

    def clean_result(self) -> Any:
        # Not a JSONField, which returns a str subclass for a string and accepts NaN.
        text = self.cleaned_data["result"]
        try:
            return parse(text) if text else None
        except ValueError as error:
            raise forms.ValidationError(
                pgettext("saga", "This is not JSON: %(error)s") % {"error": error}, code="invalid"
            ) from error


@admin.register(Saga)
class SagaAdmin(ReadOnlyAdmin):
    """A searchable list of sagas, and a page for each."""

    list_display = ("shown_key", "shown_name", "coloured_status", "shown_error", "shown_start")
    list_filter = (_Status, ("name", _Name))
    search_fields = ("^id", "=key", "=correlation_id")
    search_help_text = pgettext_lazy("saga", "A prefix of an id, a whole key or a whole correlation id")
    show_full_result_count = False
    list_per_page = 50

    class Media:
        css = {"all": ("sagas/admin.css",)}

    @admin.display(description=pgettext_lazy("saga", "key"), ordering="key")
    def shown_key(self, saga: Saga) -> str:
        key: str = saga.key
        return key

    @admin.display(description=pgettext_lazy("saga", "saga"), ordering="name")
    def shown_name(self, saga: Saga) -> str:
        name: str = saga.name
        return name

    @admin.display(description=pgettext_lazy("saga", "status"), ordering="status")
    def coloured_status(self, saga: Saga) -> str:
        return _badge(saga.status)

    @admin.display(description=pgettext_lazy("saga", "error"))
    def shown_error(self, saga: Saga) -> str:
        stuck: str | None = saga.stuck_error  # the current problem comes before the reason for compensating
        return _short((stuck if saga.status == SagaStatus.STUCK else None) or saga.error or "")

    @admin.display(description=pgettext_lazy("saga", "started"), ordering="created_at")
    def shown_start(self, saga: Saga) -> datetime:
        at: datetime = saga.created_at
        return at

    def get_queryset(self, request: HttpRequest) -> Any:
        """Return sagas without their inputs, which may be large, and with the error of the stuck step."""
        stuck = Step.objects.filter(saga=OuterRef("pk"), status=StepStatus.STUCK).values("error")[:1]
        return super().get_queryset(request).defer("input").annotate(stuck_error=Subquery(stuck))

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:  # noqa: ARG002
        """Allow URL filters only on what every user with view permission can see."""
        if lookup == _Status.parameter_name:
            return True
        field, _, how = lookup.partition("__")
        return (how or "exact") in _LOOKUPS.get(field, ())

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        if not is_clean(search_term):
            return queryset.none(), False
        found: tuple[Any, bool] = super().get_search_results(request, queryset, search_term)
        return found

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        return super().get_object(request, object_id, from_field) if is_clean(object_id) else None

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        asked = [text for name in request.GET for text in (name, *request.GET.getlist(name))]
        _refuse_unwritable([*asked, *request.POST.getlist("_selected_action")])
        response: HttpResponse = super().changelist_view(request, extra_context)
        return response

    # -- who may do what ----------------------------------------------------------------------------------------

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Return whether a user may retry, skip, cancel and so on. Viewing needs the view permission."""
        return bool(request.user.has_perm("sagas.operate_saga"))

    # -- one saga -----------------------------------------------------------------------------------------------

    def get_urls(self) -> list[Any]:
        act = self.admin_site.admin_view(self.act_view)
        answer = self.admin_site.admin_view(self.answer_view)
        return [
            path("<str:saga_id>/<str:action>/do/", act, name="sagas_saga_act"),
            path("<str:saga_id>/<str:wait>/answer/", answer, name="sagas_saga_answer"),
            *super().get_urls(),
        ]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",  # noqa: ARG002
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show everything about one saga, and buttons for the actions that its current state allows."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        operations, record = _operations_and(object_id)
        payloads = operations.queries.payloads(object_id)
        buttons = [_button(record, allowed) for allowed in operations.allowed_actions(record)]
        history = operations.queries.history(record.id)
        steps = steps_of(operations.sagas.orchestrator.sagas.foreseen(record))
        context = {
            **self._context(request, f"{record.name} {record.key}"),
            **(extra_context or {}),
            "record": record,
            "relatives": operations.relatives(record),
            "badge": _badge(record.status),
            "buttons": buttons if self.has_operate_permission(request) else [],
            "asks": asks(request, operations, record),
            "input": _json(operations.shown(payloads.input)),
            "facts": {"started": local(record.created_at), "changed": local(record.updated_at)},
            "deadline": record.deadline and local(record.deadline),
            "steps": [_step(step, _json(operations.shown(payloads.results.get(step.name)))) for step in steps],
            "history": [_entry(entry) for entry in reversed(history[-_LAST:])],
            "entries": len(history),
            "letters": [_letter(each) for each in operations.queries.dead_letters(record.id, unresolved=False)],
        }
        return TemplateResponse(request, "admin/sagas/saga/detail.html", context)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the complete history of one saga, newest first."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        operations, record = _operations_and(object_id)
        page = Paginator(operations.queries.history(record.id)[::-1], _PAGE).get_page(request.GET.get("p"))
        context = {
            **self._context(request, f"{record.name} {record.key}"),
            **(extra_context or {}),
            "record": record,
            "badge": _badge(record.status),
            "page": page,
            "history": [_entry(entry) for entry in page.object_list],
        }
        return TemplateResponse(request, "admin/sagas/saga/history.html", context)

    def act_view(self, request: HttpRequest, saga_id: str, action: str) -> HttpResponse:
        """Ask for a reason, then act. The form keeps its input until the action succeeds."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        if action not in list(Action):
            raise Http404
        operations, record = _operations_and(saga_id)
        asked = AllowedAction(Action(action), request.GET.get("step") or None)
        if asked.step is not None and asked.step not in _names_of_steps(record):
            raise Http404
        back = reverse("admin:sagas_saga_change", args=[saga_id], current_app=self.admin_site.name)
        with_result = asked.info.takes_result and record.direction is Direction.FORWARD
        form = (_ResultForm if with_result else ReasonForm)(request.POST or None)
        if request.method == "POST" and form.is_valid():
            result, reason = form.cleaned_data.get("result"), form.cleaned_data["reason"]
            try:
                after = operations.act(
                    asked.action, saga_id, actor=operator(request), reason=reason, step=asked.step, result=result
                )
            except SagaError as error:
                form.add_error(None, str(error))
            else:
                self._log(request, saga_id, asked, reason)
                outcome = {"action": _title(asked), "status": after.status}
                messages.success(request, pgettext("saga", "%(action)s: the saga is now %(status)s.") % outcome)
                return HttpResponseRedirect(back)
        return self._ask(request, form, asked, [record], back)

    def answer_view(self, request: HttpRequest, saga_id: str, wait: str) -> HttpResponse:
        """Ask for the payload of a wait, and send it as the signal. The form keeps its input until that succeeds."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        operations = _operations()
        pending = asked(request, operations, saga_id, wait)
        back = reverse("admin:sagas_saga_change", args=[saga_id], current_app=self.admin_site.name)
        title = pgettext("saga", "Answer %(wait)s") % {"wait": wait}
        form = AnswerForm(pending.form, request.POST or None)
        if request.method == "POST" and form.is_valid():
            try:
                Approvals(operations).answer(pending, form.payload, actor=operator(request), id=form.number)
            except SagaError as error:
                form.add_error(None, str(error))
            else:
                self.log_change(request, Saga.objects.get(pk=saga_id), f"Answer {wait}")
                messages.success(request, pgettext("saga", "%(wait)s is answered.") % {"wait": wait})
                return HttpResponseRedirect(back)
        context = {
            **self._context(request, title),
            "what": pgettext("saga", "Your answer is kept with your name."),
            "about": Approvals(operations).input_of(pending),
            "form": form,
            "records": [(pending.record, _badge(pending.record.status))],
            "back": back,
        }
        return TemplateResponse(request, "admin/sagas/saga/reason.html", context)

    # -- many sagas ---------------------------------------------------------------------------------------------

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return the bulk actions, for users who may operate sagas."""
        if not self.has_operate_permission(request):
            return {}
        text = pgettext("saga", "%(action)s selected sagas…")
        return {
            str(action): (_bulk(action), str(action), text % {"action": pgettext("saga", action.info.title)})
            for action in Action
            if not action.info.takes_result  # what was done by hand differs from saga to saga
        }

    def act_on_selected(self, request: HttpRequest, queryset: Any, action: Action) -> HttpResponse | None:
        """Ask for a reason, then act on each saga that allows it."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        ids = list(queryset.order_by("id").values_list("id", flat=True)[: _MOST + 1])
        if len(ids) > _MOST:
            text = pgettext("saga", "More than %(most)d sagas are selected. Narrow the list first.")
            messages.error(request, text % {"most": _MOST})
            return None
        if not ids:
            messages.warning(request, pgettext("saga", "None of the selected sagas exists any more."))
            return None
        where = Filter(ids=tuple(ids))
        form = ReasonForm(request.POST if "reason" in request.POST else None)
        asked = AllowedAction(action)
        if not form.is_valid():
            return self._ask(
                request, form, asked, _operations().queries.select(where, limit=_MOST), request.get_full_path()
            )
        reason, done = form.cleaned_data["reason"], 0
        for outcome in _operations().act_on_all(action, where, actor=operator(request), reason=reason, limit=_MOST):
            if outcome.error is None:
                done += 1
                self._log(request, outcome.record.id, asked, reason)
            else:
                messages.warning(request, f"{outcome.record.name} {outcome.record.key}: {outcome.error}")
        summary = npgettext(
            "saga",
            "%(action)s: %(done)d of %(all)d saga done.",
            "%(action)s: %(done)d of %(all)d sagas done.",
            len(ids),
        )  # fmt: skip
        messages.success(request, summary % {"action": _title(asked), "done": done, "all": len(ids)})
        return None

    def _ask(
        self, request: HttpRequest, form: forms.Form, asked: AllowedAction, records: Sequence[SagaSummary], back: str
    ) -> HttpResponse:
        context = {
            **self._context(request, _title(asked)),
            "what": _explanation(asked.action),
            "form": form,
            "records": [(record, _badge(record.status)) for record in records],
            "selected": request.POST.getlist("_selected_action"),
            "across": request.POST.get("select_across", "0"),
            "bulk": request.POST.get("action", ""),
            "back": back,
            "media": self.media + form.media,
        }
        return TemplateResponse(request, "admin/sagas/saga/reason.html", context)

    def _context(self, request: HttpRequest, title: str) -> dict[str, Any]:
        return {**self.admin_site.each_context(request), "opts": self.opts, "title": title, "media": self.media}

    def _log(self, request: HttpRequest, saga_id: str, asked: AllowedAction, reason: str) -> None:
        with translation.override(None):  # it is stored, so it is not in the language of one user
            message = f"{_title(asked)}: {reason}"
        self.log_change(request, Saga.objects.get(pk=saga_id), message)


def _bulk(action: Action) -> Any:
    def act(model_admin: SagaAdmin, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return model_admin.act_on_selected(request, queryset, action)

    return act


def _operations() -> Operations:
    return Operations(PROJECT.get())


def _operations_and(saga_id: str) -> tuple[Operations, SagaSummary]:
    operations = _operations()
    try:
        return operations, operations.queries.summary(saga_id)
    except SagaNotFound as error:
        raise Http404(str(error)) from error


def _refuse_unwritable(texts: Iterable[str]) -> None:
    """Answer 400 to text that no database can store: searching for it would raise on some."""
    if not all(map(is_clean, texts)):
        raise BadRequest("the request contains a character that cannot be stored")


def _names_of_steps(record: SagaSummary) -> set[str]:
    return {step.name for step in steps_of(record)}


def _title(asked: AllowedAction) -> str:
    action: str = pgettext("saga", asked.info.title)
    return pgettext("saga", "%(action)s %(step)s") % {"action": action, "step": asked.step} if asked.step else action


def _explanation(action: Action) -> str:
    """Return what the action does, in the language of the request."""
    info = action.info
    return " ".join(pgettext("saga", text) for text in (info.summary, info.detail) if text)


def _button(record: SagaSummary, allowed: AllowedAction) -> dict[str, str]:
    url = reverse("admin:sagas_saga_act", args=[record.id, allowed.action])
    return {
        "url": f"{url}?{urlencode({'step': allowed.step})}" if allowed.step else url,
        "title": _title(allowed),
        "what": _explanation(allowed.action),
    }


# -- what templates show ------------------------------------------------------------------------------------------


def _step(step: StepRecord, result: str) -> dict[str, Any]:
    begun = step.started_seq > 0
    return {
        "name": step.name,
        "badge": _badge(step.status) if begun or step.status is not StepStatus.PENDING else "",
        "attempts": step.attempts or "",
        "progress": step.progress,
        "started": step.started_at and local(step.started_at),
        "finished": step.finished_at and local(step.finished_at),
        "due": local(step.due_at) if step.due_at and not (step.held or step.child_id) else None,
        "result": result,
        "error": step.error or "",
    }


def _entry(entry: HistoryEntry) -> dict[str, Any]:
    return {
        "at": local(entry.at),
        "what": entry.what,
        "step": entry.step or "",
        "detail": entry.detail,
        "actor": entry.actor or "",
    }


def _letter(letter: Letter) -> dict[str, Any]:
    return {
        "opened": local(letter.created_at),
        "step": letter.step,
        "error": letter.error,
        "resolved": letter.resolved_at and local(letter.resolved_at),
        "how": letter.resolution or "",
        "why": letter.reason or "",
        "actor": letter.actor or "",
    }


def _badge(status: str) -> str:
    badge: str = format_html('<span class="saga-status saga-{}">{}</span>', status.lower(), status)
    return badge


def _json(value: Any) -> str:
    return "" if value is None else pretty(value)


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

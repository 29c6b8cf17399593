"""Schedules in the admin: when each runs, what became of its ticks, and what an operator may do to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import translation
from django.utils.functional import Promise
from django.utils.translation import pgettext, pgettext_lazy

from sagas.contrib.django.admin_parts import ReadOnlyAdmin, ReasonForm, local, operator
from sagas.contrib.django.models import Schedule
from sagas.contrib.django.project import PROJECT
from sagas.errors import SagaError
from sagas.operations import Operations
from sagas.schedule_operations import ScheduleAction, ScheduleOperations, ScheduleView
from sagas.ticks import Tick

__all__ = ["ScheduleAdmin"]

#: Ticks that are shown.
_TICKS = 50

#: What each action is called, and what it does.
_WORDS: Mapping[ScheduleAction, tuple[Promise, Promise]] = {
    ScheduleAction.PAUSE: (
        pgettext_lazy("saga", "Pause"),
        pgettext_lazy("saga", "Its ticks are skipped until it is resumed, and are not caught up."),
    ),
    ScheduleAction.RESUME: (
        pgettext_lazy("saga", "Resume"),
        pgettext_lazy("saga", "It goes on with its next tick."),
    ),
    ScheduleAction.RUN: (
        pgettext_lazy("saga", "Run now"),
        pgettext_lazy("saga", "Its saga starts now. While the saga of an earlier tick runs, its overlap decides."),
    ),
}

Schedule._meta.verbose_name = pgettext_lazy("saga", "schedule")  # noqa: SLF001 - as Django calls it
Schedule._meta.verbose_name_plural = pgettext_lazy("saga", "schedules")  # noqa: SLF001


@admin.register(Schedule)
class ScheduleAdmin(ReadOnlyAdmin):
    """Schedules: a list, and a page for each. One is listed once a worker, or an operator, has seen it."""

    list_display = ("name", "shown_saga", "shown_times", "shown_next", "shown_pause")
    actions = None

    class Media:
        css = {"all": ("sagas/admin.css",)}

    @admin.display(description=pgettext_lazy("saga", "saga"))
    def shown_saga(self, schedule: Schedule) -> str:
        return str(schedule.saga)

    @admin.display(description=pgettext_lazy("saga", "times"))
    def shown_times(self, schedule: Schedule) -> str:
        return f"{schedule.cron} ({schedule.timezone})"

    @admin.display(description=pgettext_lazy("saga", "next tick"))
    def shown_next(self, schedule: Schedule) -> datetime:
        at: datetime = schedule.next_at
        return at

    @admin.display(description=pgettext_lazy("saga", "paused by"))
    def shown_pause(self, schedule: Schedule) -> str:
        return schedule.paused_by or ""

    # -- who may do what ----------------------------------------------------------------------------------------

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Tell whether a user may pause, resume and run schedules. Looking takes the permission to view."""
        return bool(request.user.has_perm("sagas.operate_schedule"))

    # -- one schedule -------------------------------------------------------------------------------------------

    def get_urls(self) -> list[Any]:
        act = self.admin_site.admin_view(self.act_view)
        return [path("<str:name>/<str:action>/do/", act, name="sagas_schedule_act"), *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",  # noqa: ARG002
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a schedule, its next times and its ticks, with buttons for what may be done to it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        operations, view = _view(object_id)
        state = view.state
        context = {
            **self._context(request, view.name),
            **(extra_context or {}),
            "view": view,
            "buttons": [_button(view, each) for each in view.allowed] if self.has_operate_permission(request) else [],
            "paused_at": state and state.paused_at and local(state.paused_at),
            "waiting": state and state.waiting and local(state.waiting),
            # As text: templates would turn it into the time zone of who looks.
            "next_times": [f"{at:%Y-%m-%d %H:%M %Z}" for at in operations.next_times(view.name)]
            if view.schedule
            else [],
            "ticks": [_tick(tick) for tick in operations.ticks(view.name, limit=_TICKS)],
        }
        return TemplateResponse(request, "admin/sagas/schedule/detail.html", context)

    def act_view(self, request: HttpRequest, name: str, action: str) -> HttpResponse:
        """Ask for the reason, then do it."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        if action not in list(ScheduleAction):
            raise Http404
        choice = ScheduleAction(action)
        operations, view = _view(name)
        back = reverse("admin:sagas_schedule_change", args=[view.name], current_app=self.admin_site.name)
        form = ReasonForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            reason = form.cleaned_data["reason"]
            try:
                operations.act(choice, view.name, actor=operator(request), reason=reason)
            except SagaError as error:
                form.add_error(None, str(error))
            else:
                with translation.override(None):  # it is stored: in the words of the library, whoever reads it
                    self.log_change(request, Schedule.objects.get(pk=view.name), f"{_WORDS[choice][0]}: {reason}")
                messages.success(request, pgettext("saga", "%(action)s: done.") % {"action": _WORDS[choice][0]})
                return HttpResponseRedirect(back)
        title = pgettext("saga", "%(action)s %(step)s") % {"action": _WORDS[choice][0], "step": view.name}
        context = {
            **self._context(request, title),
            "what": _WORDS[choice][1],
            "form": form,
            "back": back,
            "media": self.media + form.media,
        }
        return TemplateResponse(request, "admin/sagas/saga/reason.html", context)

    def _context(self, request: HttpRequest, title: str) -> dict[str, Any]:
        return {**self.admin_site.each_context(request), "opts": self.opts, "title": title, "media": self.media}


def _view(name: str) -> tuple[ScheduleOperations, ScheduleView]:
    operations = ScheduleOperations(Operations(PROJECT.get()))
    for view in operations.list():
        if view.name == name:
            return operations, view
    raise Http404(f"there is no schedule {name!r}")


def _button(view: ScheduleView, action: ScheduleAction) -> dict[str, Any]:
    url = reverse("admin:sagas_schedule_act", args=[view.name, action])
    return {"url": url, "title": _WORDS[action][0], "what": _WORDS[action][1]}


def _tick(tick: Tick) -> dict[str, Any]:
    return {
        "at": local(tick.at),
        "outcome": tick.outcome,
        "why": tick.why,
        "actor": tick.actor or "",
        "url": tick.saga_id and reverse("admin:sagas_saga_change", args=[tick.saga_id]),
        "saga_id": tick.saga_id or "",
    }

from celery import shared_task
from django.db import transaction

from tests.django_project.orders.models import Effect


@shared_task
def note(what: str) -> None:
    """An ordinary task, which knows nothing of sagas."""
    with transaction.atomic():
        Effect.objects.create(what=what)

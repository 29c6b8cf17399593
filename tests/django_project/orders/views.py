from asgiref.sync import sync_to_async
from django.db import connection
from django.http import HttpRequest, HttpResponse

from sagas.contrib.django import publish, sagas
from tests.django_project.orders.events import OrderPlaced
from tests.django_project.orders.models import Order
from tests.django_project.orders.sagas import place_order


def order(request: HttpRequest) -> HttpResponse:
    number = request.GET["number"]
    Order.objects.create(number=number)
    handle = place_order.start({"number": number, "card": "4111", "fault": ""}, key=number)
    publish(OrderPlaced(number=number), key=number)
    if "fail" in request.GET:
        raise RuntimeError("the view fails")
    return HttpResponse(f"{handle.id} {connection.in_atomic_block}")


async def order_async(request: HttpRequest) -> HttpResponse:
    number = request.GET["number"]
    given = {"number": number, "card": "4111", "fault": ""}
    handle = await sync_to_async(place_order.start)(given, key=number)
    found = await sync_to_async(sagas.find)("place_order", number)
    status = await sync_to_async(lambda: found.status)()
    return HttpResponse(f"{handle.id} {status}")


async def order_await(request: HttpRequest) -> HttpResponse:
    number = request.GET["number"]
    handle = await place_order.astart({"number": number, "card": "4111", "fault": ""}, key=number)
    return HttpResponse(f"{handle.id} {await handle.await_end(timeout=10)}")

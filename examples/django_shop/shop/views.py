import json
import urllib.error
import urllib.request
from uuid import UUID, uuid4

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from sagas import KeyConflict, SagaRecord, SagaStatus
from sagas.contrib.django import sagas
from shop.models import BankOrder, Order, Product
from shop.sagas import place_order, refund_order

_AT_REST = (SagaStatus.COMPLETED, SagaStatus.COMPENSATED, SagaStatus.STUCK)


def products(request: HttpRequest) -> HttpResponse:
    context = {
        "products": [(product, uuid4()) for product in Product.objects.all()],  # each form is one order
        "orders": Order.objects.select_related("product")[:10],
    }
    return render(request, "shop/products.html", context)


@require_POST
def place(request: HttpRequest) -> HttpResponse:
    product = get_object_or_404(Product, pk=request.POST["product"])
    try:
        number, quantity = UUID(request.POST["number"]), int(request.POST["quantity"])
    except (KeyError, ValueError):
        return HttpResponse("This form is not valid.", status=400)
    given = {
        "order": number, "product": product.pk, "quantity": quantity, "amount": quantity * product.price,
        "card": request.POST["card"],
    }  # fmt: skip
    try:
        with transaction.atomic():  # both the order and its saga exist, or neither
            place_order.start(given, key=str(number))  # or finds the saga of this order, if the form was sent twice
            order, _ = Order.objects.get_or_create(number=number, defaults={"product": product, "quantity": quantity})
    except KeyConflict:
        return HttpResponse("Another order was placed with this form: reload the page.", status=409)
    return redirect("order", order.pk)


def order(request: HttpRequest, pk: int) -> HttpResponse:
    return _show(request, pk, "shop/order.html")


def progress(request: HttpRequest, pk: int) -> HttpResponse:
    """The part of the page that changes. The page polls it until the saga has ended."""
    return _show(request, pk, "shop/progress.html")


@require_POST
def refund(request: HttpRequest, pk: int) -> HttpResponse:
    order = get_object_or_404(Order, pk=pk, status="shipped")
    why = request.POST.get("why", "").strip()[:500]
    if not why:
        return HttpResponse("Say why.", status=400)
    try:
        refund_order.start({"order": order.number, "amount": order.total, "why": why}, key=str(order.number))
    except KeyConflict:
        return HttpResponse("A refund of this order was asked for already.", status=409)
    return redirect("order", order.pk)


def bank(request: HttpRequest) -> HttpResponse:
    """The page of the bank, as if it were another company: its answer goes to the shop by HTTP."""
    said = ""
    if request.method == "POST":
        asked = get_object_or_404(BankOrder, pk=request.POST["pk"])
        body = {"result": f"b-{asked.pk}"} if request.POST["answer"] == "pay" else {"error": "no such account"}
        callback = request.build_absolute_uri(reverse("from_bank", args=[asked.token]))
        call = urllib.request.Request(
            callback, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(call, timeout=10) as answer:
                said = f"The shop answered {answer.status}."
        except urllib.error.HTTPError as error:
            said = f"The shop answered {error.code}."
    return render(request, "shop/bank.html", {"orders": BankOrder.objects.all(), "said": said})


def _show(request: HttpRequest, pk: int, template: str) -> HttpResponse:
    order = get_object_or_404(Order.objects.select_related("product"), pk=pk)
    record = sagas.find("place_order", str(order.number)).record
    context = {"order": order, "saga": record, "steps": _steps(record), "at_rest": record.status in _AT_REST}
    return render(request, template, context)


def _steps(record: SagaRecord) -> list[tuple[str, str, str]]:
    """Return the name, status and error of each step."""
    states = [record.step(name) for name in place_order.steps]
    return [(state.name.replace("_", " "), state.status.value, state.error or "") for state in states]

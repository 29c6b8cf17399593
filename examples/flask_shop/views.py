"""The pages for customers."""

from __future__ import annotations

import secrets
import uuid

from flask import Blueprint, abort, flash, redirect, render_template, request, session, url_for
from sqlalchemy import select
from werkzeug.wrappers import Response

from examples.flask_shop.models import Order, Product, db
from examples.flask_shop.orders import PlaceOrder, place_order
from examples.flask_shop.refunds import AskRefund, refund_order
from sagas import KeyConflict, SagaRecord
from sagas.contrib.flask import current_sagas

__all__ = ["is_mine", "shop"]

shop = Blueprint("shop", __name__)

CARDS = {"good": "a card that works", "declined": "a card that is declined"}


@shop.app_context_processor
def _token() -> dict[str, str]:
    return {"token": session.setdefault("token", secrets.token_hex())}


@shop.before_app_request
def _refuse_foreign_forms() -> None:
    if request.blueprint in ("sagas_approvals", "from_bank"):  # they protect themselves
        return
    if request.method == "POST" and not secrets.compare_digest(
        request.form.get("token", ""), session.get("token", "-")
    ):
        abort(400, "The form is too old, or not one of this shop's. Go back, reload, and try again.")


@shop.get("/")
def products() -> str:
    everything = db.session.scalars(select(Product).order_by(Product.cents)).all()
    return render_template("products.html", products=everything, cards=CARDS, new_number=uuid.uuid4)


@shop.post("/orders")
def place() -> Response:
    product = db.session.get(Product, request.form["sku"]) or abort(404)
    quantity, card = request.form.get("quantity", 0, type=int), request.form.get("card", "")
    number = request.form.get("number", type=uuid.UUID)
    if not 1 <= quantity <= 99 or card not in CARDS or number is None:
        abort(400, "Choose a quantity from 1 to 99 and one of the cards.")
    order_id = f"o-{number}"
    try:  # or find the saga of this order, if the form was sent twice
        handle = place_order.start(
            PlaceOrder(order_id, product.sku, quantity, quantity * product.cents, card), key=order_id
        )
    except KeyConflict:
        abort(409, "Another order was placed with this form. Go back, reload, and try again.")
    if db.session.get(Order, order_id) is None:
        order = Order(id=order_id, customer=_customer(), sku=product.sku, quantity=quantity, saga_id=handle.id)
        db.session.add(order)
    db.session.commit()  # the order and its saga, or neither
    return redirect(url_for("shop.show", order_id=order_id))


@shop.get("/orders")
def mine() -> str:
    orders = db.session.scalars(select(Order).where(Order.customer == _customer())).all()
    records = [current_sagas().load(order.saga_id) for order in orders]
    rows = sorted(zip(records, orders, strict=True), key=lambda row: row[0].id, reverse=True)
    return render_template("orders.html", rows=rows)


@shop.get("/orders/<order_id>")
def show(order_id: str) -> str:
    order = db.session.get(Order, order_id)
    if order is None or order.customer != _customer():
        abort(404)
    stages = [[step.name for step in stage] for stage in place_order.stages]
    return render_template("order.html", order=order, stages=stages)


@shop.post("/orders/<order_id>/refund")
def refund(order_id: str) -> Response:
    order = db.session.get(Order, order_id)
    if order is None or order.customer != _customer() or order.state != "shipped":
        abort(404)
    why = request.form.get("why", "").strip()
    if not 1 <= len(why) <= 500:
        abort(400, "Say why, in at most 500 characters.")
    try:
        refund_order.start(AskRefund(order_id, order.quantity * order.product.cents, why), key=order_id)
    except KeyConflict:
        abort(409, "A refund of this order was asked for already.")
    db.session.commit()
    flash("We will look at it.")
    return redirect(url_for("shop.mine"))


def is_mine(record: SagaRecord) -> bool:
    """Return whether the current user may see a saga: only whoever placed the order may."""
    order = db.session.get(Order, record.key) if record.name == place_order.name else None
    return order is not None and order.customer == _customer()


def _customer() -> str:
    customer: str = session.setdefault("customer", secrets.token_hex(8))
    return customer

from sagas.contrib.django import engine
from sagas.events import Events, HandlerContext, Service, event
from sagas.events.brokers.memory import MemoryBroker


@event("orders.order.placed")
class OrderPlaced:
    number: str


orders = Service("orders", publishes=[OrderPlaced])
mail = Service("mail")


@mail.on(OrderPlaced)
def thank(event: OrderPlaced, context: HandlerContext) -> None:
    from tests.django_project.orders.models import Effect

    Effect.objects.create(what=f"mail {event.number}")
    if event.number == "refused" and context.attempt == 1:
        raise RuntimeError("after its effect")


events = Events([orders, mail], engine=engine(), broker=MemoryBroker())

"""A trip: a hotel, flights and a car, each booked by a saga of its own, and then paid for together."""

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from sagas import Child, Parallel, Pivot, Saga, Step, StepContext
from tasks import faults, ledger

__all__ = ["BookCar", "BookFlights", "BookHotel", "BookTrip", "book_car", "book_flights", "book_hotel", "book_trip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BookHotel:
    trip_id: str
    city: str
    check_in: date
    nights: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BookFlights:
    trip_id: str
    city: str
    out: date
    back: date


@dataclass(frozen=True, slots=True, kw_only=True)
class BookCar:
    trip_id: str
    city: str
    days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BookTrip:
    trip_id: str
    customer: str
    city: str
    start: date
    nights: int
    amount: Decimal
    with_car: bool = False


# -- the hotel ----------------------------------------------------------------------------------------------------


def reserve_room(trip_id: str, city: str, nights: int, step: StepContext) -> str:
    """Take a room. Returns the number of the reservation."""
    return _take(step, trip_id, "hotel.reserve", f"hotels/{city}", nights)


def cancel_room(trip_id: str, step: StepContext) -> None:
    """Give the room back."""
    _give_back(step, trip_id, "hotel.cancel")


book_hotel = Saga("book_hotel", Step("reserve_room", reserve_room, compensation=cancel_room), input=BookHotel)


# -- the flights --------------------------------------------------------------------------------------------------


def reserve_outbound(trip_id: str, city: str, out: date, step: StepContext) -> str:
    """Take a seat there. Returns the number of the ticket."""
    return _take(step, trip_id, "flights.outbound", f"flights/{city}-{out}", 1)


def reserve_inbound(trip_id: str, city: str, back: date, step: StepContext) -> str:
    """Take a seat back. Returns the number of the ticket."""
    return _take(step, trip_id, "flights.inbound", f"flights/{city}-{back}", 1)


def cancel_seat(trip_id: str, step: StepContext) -> None:
    """Give a seat back."""
    _give_back(step, trip_id, "flights.cancel")


book_flights = Saga(
    "book_flights",
    Step("reserve_outbound", reserve_outbound, compensation=cancel_seat),
    Step("reserve_inbound", reserve_inbound, compensation=cancel_seat),
    input=BookFlights,
)


# -- the car ------------------------------------------------------------------------------------------------------


def reserve_car(trip_id: str, city: str, days: int, step: StepContext) -> str:
    """Take a car. Returns the number of the contract."""
    return _take(step, trip_id, "car.reserve", f"cars/{city}", days)


def cancel_car(trip_id: str, step: StepContext) -> None:
    """Give the car back."""
    _give_back(step, trip_id, "car.cancel")


book_car = Saga("book_car", Step("reserve_car", reserve_car, compensation=cancel_car), input=BookCar)


# -- the trip -----------------------------------------------------------------------------------------------------


def hotel_of(trip_id: str, city: str, start: date, nights: int) -> BookHotel:
    """Return what the hotel is asked for."""
    return BookHotel(trip_id=trip_id, city=city, check_in=start, nights=nights)


def flights_of(trip_id: str, city: str, start: date, nights: int) -> BookFlights:
    """Return what the airline is asked for."""
    return BookFlights(trip_id=trip_id, city=city, out=start, back=start + timedelta(days=nights))


def car_of(trip_id: str, city: str, nights: int) -> BookCar:
    """Return what the car rental is asked for."""
    return BookCar(trip_id=trip_id, city=city, days=nights + 1)


def wants_car(with_car: bool) -> bool:
    """Say whether the customer wants a car."""
    return with_car


def charge(trip_id: str, customer: str, amount: Decimal, step: StepContext) -> str:
    """Charge the customer. Returns the number of the payment."""
    faults.check(step, trip_id, "trip.charge")
    operation = ledger.begin(step, trip_id)
    if operation.answer is None:
        ledger.post(step, trip_id, "charged", f"payments/{customer}", amount=amount)
        operation.answer = ledger.number(step, "payment")
    return operation.answer


def send_itinerary(
    trip_id: str, hotel: dict[str, str], flights: dict[str, str], car: dict[str, str] | None, step: StepContext
) -> str:
    """Send the customer all numbers. Returns the text."""
    faults.check(step, trip_id, "trip.send")
    numbers = [hotel["reserve_room"], flights["reserve_outbound"], flights["reserve_inbound"]]
    return ", ".join([*numbers, *((car or {}).values())])


book_trip = Saga(
    "book_trip",
    Parallel(Child("hotel", book_hotel, input=hotel_of), Child("flights", book_flights, input=flights_of)),
    Child("car", book_car, input=car_of, when=wants_car),
    Pivot("charge_customer", charge),
    Step("send_itinerary", send_itinerary),
    input=BookTrip,
    timeout=timedelta(minutes=30),
)


def _take(step: StepContext, trip_id: str, at: str, account: str, quantity: int) -> str:
    faults.check(step, trip_id, at)
    operation = ledger.begin(step, trip_id)
    if operation.answer is None:
        ledger.post(step, trip_id, "reserved", account, quantity=quantity)
        operation.answer = ledger.number(step, at.partition(".")[0])
    return operation.answer


def _give_back(step: StepContext, trip_id: str, at: str) -> None:
    faults.check(step, trip_id, at)
    if ledger.undo(step, trip_id):
        ledger.reverse(step, "released")

"""The graph that is put together from declarations: what is in it, what is wrong with it, and how it is drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from sagas.events import Service, command, event
from sagas.events.choreography import Heard, Problem, compared, graph, problems
from sagas.events.drawing import FORMATS, render
from tasks.choreography import SERVICES


def fact(name: str, *, failure: bool = False, version: int = 1, upcasters: Any = None) -> type:
    declare = event(name, failure=failure, version=version, upcasters=upcasters, check_name=False)
    return declare(type(name.replace(".", "_"), (), {}))


def request(name: str) -> type:
    return command(name, check_name=False)(type(name.replace(".", "_"), (), {}))


class Net:
    """Services with handlers that are named by what they take and give."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}

    def service(self, name: str, publishes: Iterable[type] = ()) -> Service:
        return self.services.setdefault(name, Service(name, publishes=publishes))

    def on(self, service: str, name: str, takes: Any, *emits: type, undoes: Iterable[type] = ()) -> None:
        takes = takes if isinstance(takes, list) else [takes]
        self.service(service).on(*takes, name=name, emits=emits, compensates=undoes)(lambda event: None)

    def handles(self, service: str, takes: type, *emits: type) -> None:
        self.service(service).handles(takes, emits=emits)(lambda command: None)

    def problems(self) -> list[Problem]:
        return problems(graph(self.services.values()))

    def found(self) -> list[tuple[str, str, tuple[str, ...]]]:
        return [(problem.level, problem.kind, problem.path) for problem in self.problems()]


@pytest.fixture
def net() -> Net:
    return Net()


A, B, C, D = (fact(f"{name}.x.happened") for name in "abcd")
FAILED = fact("c.x.failed", failure=True)


def test_the_shop_has_nothing_wrong_and_its_messages_are_those_of_its_events() -> None:
    shop = graph(SERVICES)
    assert problems(shop) == []
    assert len(shop.messages) == 10
    assert [h.name for h in shop.handlers_of("inventory.stock.reservation_failed")] == ["refund_payment"]
    assert [h.name for h in shop.emitters_of("inventory.stock.released")] == ["release_stock"]
    assert shop.next("payments.payment.completed") == ("inventory.stock.reserved", "inventory.stock.reservation_failed")


def test_services_that_are_elsewhere_are_left_alone() -> None:
    inventory = [service for service in SERVICES if service.name == "inventory"]
    assert [(p.level, p.kind) for p in problems(graph(inventory))] == [
        ("problem", "unhandled"),  # only who is here could say who handles the failure
        ("advice", "unhandled"),
        ("advice", "unhandled"),
    ]


# -- cycles -------------------------------------------------------------------------------------------------------


def test_messages_that_lead_to_each_other(net: Net) -> None:
    net.service("a", [A])
    net.on("b", "one", A, B)
    net.on("c", "two", B, C)
    net.on("b", "three", C, B)
    assert net.found() == [("problem", "cycle", ("b.x.happened", "c.x.happened", "b.x.happened"))]
    assert "b.x.happened -> c.x.happened -> b.x.happened" in net.problems()[0].text


def test_a_handler_that_emits_what_it_handles(net: Net) -> None:
    net.on("a", "again", A, A)
    assert net.found() == [("problem", "cycle", ("a.x.happened", "a.x.happened"))]


# -- nobody -------------------------------------------------------------------------------------------------------


def test_what_nobody_handles(net: Net) -> None:
    here, elsewhere = request("d.do"), request("far.do")
    net.service("d")
    net.service("c", [C, FAILED, here, elsewhere])
    assert net.found() == [
        ("problem", "unhandled", ("c.x.failed",)),
        ("problem", "unhandled", ("d.do",)),
        ("advice", "unhandled", ("c.x.happened",)),
    ]


def test_what_nobody_emits(net: Net) -> None:
    do = request("b.do")
    net.service("a")
    net.on("b", "wait", A)
    net.on("b", "wait_for_others", D)  # service d is elsewhere
    net.handles("b", do)
    assert net.found() == [
        ("problem", "unemitted", ("a.x.happened",)),
        ("advice", "unemitted", ("b.do",)),
    ]
    assert "service a does not declare that it emits a.x.happened, handled by b.wait" in net.problems()[0].text


def test_versions_that_cannot_be_read(net: Net) -> None:
    first, third = fact("a.x.happened"), fact("a.x.happened", version=3)
    net.service("a", [third])
    net.on("b", "old", first)
    assert net.found() == [("problem", "unread version", ("a.x.happened",))]
    assert "emitted in version 3; b.old reads only 1" in net.problems()[0].text
    both = Net()
    both.service("a", [first, third])
    both.on("b", "new", fact("a.x.happened", version=3, upcasters={1: dict, 2: dict}))
    both.on("b", "each", [first, third])
    assert both.found() == []


# -- compensations ------------------------------------------------------------------------------------------------


def _flow(net: Net) -> None:
    """A is published, B follows, then C or FAILED."""
    net.service("a", [A])
    net.on("b", "act", A, B)
    net.on("c", "try_it", B, C, FAILED)
    net.on("d", "enjoy", C)


def test_what_may_fail_later_and_is_never_undone(net: Net) -> None:
    _flow(net)
    net.on("d", "mourn", FAILED)
    assert net.found() == [
        ("advice", "uncompensated", ("a.x.happened", "b.x.happened", "c.x.failed")),
        ("advice", "uncompensated", ("b.x.happened", "c.x.failed")),
    ]


def test_what_is_undone_when_it_fails(net: Net) -> None:
    undone = fact("b.x.undone")
    _flow(net)
    net.on("b", "undo", FAILED, undone, undoes=[B])
    net.on("a", "give_up", undone, undoes=[A])
    assert net.found() == []


def test_an_undoing_that_the_failure_does_not_lead_to(net: Net) -> None:
    undone = fact("b.x.undone")
    _flow(net)
    net.on("d", "mourn", FAILED)
    net.on("b", "undo", D, undone, undoes=[B])  # waits for something else
    net.on("a", "give_up", undone, undoes=[A])
    assert net.found() == [
        ("problem", "unemitted", ("d.x.happened",)),
        ("problem", "uncompensated", ("a.x.happened", "b.x.happened", "c.x.failed")),
        ("problem", "uncompensated", ("b.x.happened", "c.x.failed")),
    ]
    assert "b.undo must compensate b.x.happened, but no message reaches it" in net.problems()[2].text


def test_what_follows_a_failure_needs_no_undoing_of_its_own(net: Net) -> None:
    undone, lost = fact("b.x.undone"), fact("d.x.lost", failure=True)
    _flow(net)
    net.on("b", "undo", FAILED, undone, undoes=[B])
    net.on("a", "give_up", undone, undoes=[A])
    net.on("d", "mourn", [FAILED, undone], lost)
    net.on("c", "comfort", lost)
    assert net.found() == []


def test_a_failure_instead_of_an_event_does_not_follow_it(net: Net) -> None:
    net.service("b", [B])
    net.on("c", "try_it", B, C, FAILED)
    net.on("b", "undo", FAILED, undoes=[B])
    net.on("d", "enjoy", C)
    assert net.found() == []  # C or FAILED, never both: there is nothing about C to undo


# -- long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("services", "advised"), [(5, False), (6, True)])
def test_flows_through_many_services(net: Net, services: int, advised: bool) -> None:
    steps = [fact(f"s{n}.x.happened") for n in range(services)]
    net.service("s0", [steps[0]])
    for n in range(1, services):
        net.on(f"s{n}", "go_on", steps[n - 1], steps[n])
    net.on("s0", "end", steps[-1])
    assert [kind for _, kind, _ in net.found()] == (["long"] if advised else [])


# -- what was seen ------------------------------------------------------------------------------------------------


def test_declared_and_seen(net: Net) -> None:
    _flow(net)
    net.on("b", "watch", A)
    agreed = [
        Heard("a.x.happened", "b.act"),
        Heard("a.x.happened", "b.watch"),
        Heard("a.x.happened", "b.act", "b.x.happened"),
        # The tables cannot tell which of the two handlers emitted it.
        Heard("a.x.happened", "b.watch", "b.x.happened"),
        Heard("b.x.happened", "c.try_it"),
        Heard("b.x.happened", "c.try_it", "c.x.happened"),
    ]
    difference = compared(graph(net.services.values()), [*agreed, Heard("b.x.happened", "old.listener")])
    assert difference.undeclared == (Heard("b.x.happened", "old.listener"),)
    assert difference.unseen == (Heard("b.x.happened", "c.try_it", "c.x.failed"), Heard("c.x.happened", "d.enjoy"))
    undeclared = compared(graph(net.services.values()), [Heard("b.x.happened", "c.try_it", "c.y.done")]).undeclared
    assert [str(heard) for heard in undeclared] == ["b.x.happened -> c.try_it -> c.y.done"]


# -- drawings -----------------------------------------------------------------------------------------------------


def test_every_drawing_has_everybody_in_it() -> None:
    shop = graph(SERVICES)
    for format_ in FORMATS:
        drawn = render(shop, format_)
        assert drawn == render(graph(SERVICES), format_)  # the same each time, to be kept in a repository
        for name in [*shop.messages, *(h.name for h in shop.handlers), *shop.services]:
            assert name in drawn, f"{name} in {format_}"
    assert render(shop).count(" --> ") == render(shop, "dot").count(" -> ") == 20


def _tangled(net: Net) -> None:
    do = request("b.do")
    net.service("a", [A, do])
    net.handles("b", do, B)
    net.on("b", "one", A, B, do)
    net.on("c", "two", [A, B], C, FAILED)
    net.on("c", "three", [C, FAILED], C)
    net.on("b", "four", FAILED, B, undoes=[B])


NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    "build", [_tangled, lambda net: net.services.update({s.name: s for s in SERVICES}), lambda _: None]
)
def test_an_image_in_which_nothing_lies_on_anything_else(net: Net, build: Callable[[Net], None]) -> None:
    build(net)
    declared = graph(net.services.values())
    image = ET.fromstring(render(declared, "svg"))
    width, height = float(image.attrib["width"]), float(image.attrib["height"])
    boxes = []
    for shape in image:
        if "box" not in shape.attrib.get("class", ""):
            continue
        if shape.tag == f"{NAMESPACE}rect":
            x, y, w, h = (float(shape.attrib[name]) for name in ("x", "y", "width", "height"))
        else:
            numbers = [float(number) for number in re.findall(r"[\d.]+", shape.attrib["points"])]
            x, y, w, h = numbers[0], numbers[3], numbers[6] - numbers[0], numbers[9] - numbers[3]
        boxes.append((x, y, x + w, y + h))
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
    assert len(boxes) == len(declared.messages) + len(declared.handlers)
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            apart = one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
            assert apart, (one, other)
    heads = sum(key.startswith("marker-") for path in image.iter(f"{NAMESPACE}path") for key in path.attrib)
    assert heads == sum(len(h.handles) + len(h.emits) for h in declared.handlers)


def test_without_cycles_all_arrows_go_downwards() -> None:
    diamond = Net()  # D is one step from A, and four
    diamond.service("a", [A])
    diamond.on("b", "one", A, B)
    diamond.on("c", "two", B, C)
    diamond.on("d", "three", [C, A], D)
    for services in (SERVICES, diamond.services.values()):
        image = ET.fromstring(render(graph(services), "svg"))
        arrows = [path.attrib["d"] for path in image.iter(f"{NAMESPACE}path") if path.attrib["class"] == "arrow"]
        for arrow in arrows:
            numbers = [float(number) for number in re.findall(r"[\d.]+", arrow)]
            assert numbers[1] < numbers[-1], arrow


def test_an_image_is_readable_in_light_and_in_dark() -> None:
    style = render(graph(SERVICES), "svg").partition("<style>")[2].partition("</style>")[0]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for shape in ("paper", "arrow", "head", "text", "box", "event", "command", "failure"):
        assert shape in light
        assert shape in dark

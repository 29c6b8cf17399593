"""docs/monitoring.md, the dashboard and the alerts speak of what is in the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from celery import Celery, signals
from opentelemetry import trace
from opentelemetry.sdk.trace import export as sdk
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once
from prometheus_client import REGISTRY, CollectorRegistry

from sagas import Sagas, SqlStore
from sagas.contrib.prometheus import Metrics, Snapshot
from sagas.events import Events, Service, event
from sagas.events.brokers.memory import MemoryBroker
from tests.pages import fences
from tests.rig import ROOT

PAGE_FILE = ROOT / "docs" / "monitoring.md"
PAGE = PAGE_FILE.read_text()
ALERTS = yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "config" / "grafana" / "sagas.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
promtool = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(promtool is None, reason="promtool is not installed")


@event("stock.stock.reserved")
class StockReserved:
    sku: str


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What there is: by its name, as in the table."""
    registry = CollectorRegistry()
    Metrics(registry)
    store = SqlStore(f"sqlite:///{tmp_path_factory.mktemp('metrics') / 'sagas.db'}")
    store.upgrade()
    service = Service("stock", publishes=[StockReserved])
    events = Events([service], engine=store.engine, broker=MemoryBroker())
    registry.register(Snapshot(Sagas(Celery("x", broker="memory://", set_as_current=False), store, events=events)))
    found = {f.name + "_total" if f.type == "counter" else f.name: f for f in registry.collect()}
    store.engine.dispose()
    return found


def table(name: str) -> list[str]:
    [text] = re.findall(f"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", PAGE, re.DOTALL)
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_the_table_has_each_metric(metrics: dict[str, Any]) -> None:
    assert sorted(table("metrics")) == sorted(metrics)


def test_the_table_has_each_label(metrics: dict[str, Any]) -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| ([\w, ]*)\|", PAGE, re.MULTILINE))
    registry = CollectorRegistry()
    for name, metric in vars(Metrics(registry)).items():
        labels = [label.strip() for label in told[_name(metric)].split(",") if label.strip()]
        assert labels == list(metric._labelnames), name


def _name(metric: Any) -> str:
    return f"{metric._name}_total" if metric._type == "counter" else str(metric._name)


def test_each_alert_is_explained() -> None:
    assert table("alerts") == [rule["alert"] for rule in RULES]
    assert all(rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"] for rule in RULES)


@pytest.mark.parametrize("expression", sorted({*EXPRESSIONS, *(rule["expr"] for rule in RULES)}))
def test_what_is_looked_at_exists(expression: str, metrics: dict[str, Any]) -> None:
    samples = set(metrics)
    for name, family in metrics.items():
        if family.type == "histogram":
            samples |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    used = set(re.findall(r"\bsagas_\w+", expression))
    assert used
    assert used <= samples


@needs_promtool
def test_promtool_takes_the_configuration() -> None:
    assert promtool is not None
    run(promtool, "check", "config", str(ROOT / "config" / "prometheus" / "prometheus.yml"))


@needs_promtool
def test_promtool_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    assert promtool is not None
    plain = [text.replace("$__rate_interval", "5m").replace("$saga", ".*") for text in EXPRESSIONS]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(plain)]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", str(file))


#: For each alert: what is there for an hour when it must fire, and when it must not. None: nothing at all.
CASES: dict[str, tuple[str | None, str]] = {
    "SagaStuck": (
        'sagas_unfinished{saga="order", status="STUCK"} 1',
        'sagas_unfinished{saga="order", status="STUCK"} 0',
    ),
    "SagaTooOld": (
        'sagas_oldest_seconds{saga="order", status="RUNNING"} 4000',
        'sagas_oldest_seconds{saga="order", status="STUCK"} 4000',
    ),
    "SagaNotProgressing": ('sagas_not_progressing{saga="order"} 2', 'sagas_not_progressing{saga="order"} 0'),
    "SagaRecoveryFails": (
        'sagas_recovery_failures_total{saga="order"} 0+1',
        'sagas_recovery_failures_total{saga="order"} 7',
    ),
    "SagaDeadLetters": ('sagas_dead_letters{saga="order"} 2', 'sagas_dead_letters{saga="order"} 0'),
    "SagaRecoveryMissing": ("sagas_overdue_seconds 90", "sagas_overdue_seconds 12"),
    "EventDeadLetters": ('sagas_event_dead_letters{queue="q"} 2', 'sagas_event_dead_letters{queue="q"} 0'),
    "OutboxNotRelayed": ("sagas_outbox_oldest_seconds 61", "sagas_outbox_oldest_seconds 2"),
    "BreakerOpen": ('sagas_breaker_open{queue="q"} 1', 'sagas_breaker_open{queue="q"} 0'),
    "SagaMetricsOld": (None, "sagas_snapshot_up 1"),
}


@needs_promtool
def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    assert promtool is not None
    assert set(CASES) == {rule["alert"] for rule in RULES}
    tests = []
    for name, cases in CASES.items():
        for fires, series in zip((True, False), cases, strict=True):
            labels = dict(re.findall(r'(\w+)="(\w+)"', series or ""))
            [rule] = [rule for rule in RULES if rule["alert"] == name]
            kept = {k: v for k, v in labels.items() if re.search(rf"by \([^)]*\b{k}\b", rule["expr"])}
            expected = [{"exp_labels": {**kept, "severity": rule["labels"]["severity"]}}] if fires else []
            values = [] if series is None else [series.rpartition(" ")]
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": one, "values": f"{value}x60"} for one, _, value in values],
                    "alert_rule_test": [{"eval_time": "30m", "alertname": name, "exp_alerts": expected}],
                }
            )
    # Only that they fire is compared: what they say is written beside them.
    silent = json.loads(json.dumps(ALERTS))
    for group in silent["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(silent))
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "tests": tests}))
    run(promtool, "test", "rules", str(tmp_path / "test.yml"))


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_mounts_what_is_there() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source
    scraped = yaml.safe_load((ROOT / "config" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    names = scraped[0]["static_configs"][0]["targets"] + scraped[1]["dns_sd_configs"][0]["names"]
    assert {name.split(":")[0] for name in names} <= set(services)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sdk, "ConsoleSpanExporter", lambda: exporter)  # it would write to wherever stdout was at first
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    before = set(REGISTRY._collector_to_names)
    names: dict[str, Any] = {"__name__": "docs"}
    for fence in fences(PAGE_FILE, "python"):
        source = fence.source.replace("redis://127.0.0.1:6379/0", "memory://")
        exec(compile(source, "docs/monitoring.md", "exec"), names)
    try:
        names["sagas"].store.upgrade()
        names["set_up"]()
        names["place_order"].start()
        names["finish"]()
        assert [span.name for span in exporter.get_finished_spans()] == ["start place_order"]
        assert REGISTRY.get_sample_value("sagas_started_total", {"saga": "place_order"}) == 1
    finally:
        structlog.reset_defaults()
        signals.worker_process_init.disconnect(names["set_up"])
        signals.worker_process_shutdown.disconnect(names["finish"])
        for collector in set(REGISTRY._collector_to_names) - before:
            REGISTRY.unregister(collector)
        names["app"].close()
        names["sagas"].store.engine.dispose()

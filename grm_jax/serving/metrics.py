"""Prometheus metrics of a server, on a registry of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grm_jax.serving.service import Service

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of requests and gauges of the engine.

    Attributes:
      recent_seconds: moving average of the time of successful requests.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            *("grm_requests", "Requests by route and HTTP status.", ("route", "status")),
            registry=self.registry,
        )
        self.seconds = Histogram(
            *("grm_request_seconds", "Seconds from a request's head to its last byte.", ("route",)),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.refused = Counter(
            "grm_queue_full", "Requests refused with status 429.", registry=self.registry
        )
        self.rewards = Counter(
            "grm_rewards", "Rewards by status.", ("status",), registry=self.registry
        )
        self.recent_seconds = 1.0

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        if status == 200:
            self.recent_seconds += 0.05 * (seconds - self.recent_seconds)

    def watch(self, service: Service) -> None:
        """Adds the engine's counts, read at each scrape."""
        self.registry.register(_EngineCollector(service))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector:
    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        thread = self.service.engine
        engine, stats = thread.engine, thread.engine.stats
        gauges = {
            ("grm_ready", "1 if requests are answered."): self.service.problem() is None,
            ("grm_requests_in_flight", "HTTP requests that run or wait."): len(
                self.service.contexts
            ),
            ("grm_prompts_waiting", "Prompts that wait for a prompt slot."): thread.waiting,
            ("grm_rows_running", "Batch rows that decode a sample."): engine.running_rows,
            ("grm_rows", "Batch rows of the engine."): engine.P * engine.R,
        }
        for (name, text), value in gauges.items():
            yield GaugeMetricFamily(name, text, value=float(value))
        counters = {
            ("grm_tokens", "Sampled tokens."): stats.tokens,
            ("grm_prompts", "Prefilled prompts."): stats.prompts,
            ("grm_decode_steps", "Decode steps of the device."): stats.steps,
            ("grm_row_steps", "Decode steps times batch rows."): stats.row_steps,
            ("grm_busy_row_steps", "Those that produced a token."): stats.busy,
        }
        for (name, text), count in counters.items():
            yield CounterMetricFamily(name, text, value=count)

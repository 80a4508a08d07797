"""Traces by OpenTelemetry, where somebody collects them: from the request that makes a job to its first training step.

On where OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set and the extra `otel` is installed;
the other OTEL_* variables work as they do everywhere. Off, nothing of OpenTelemetry is imported and a span is a no-op.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

log = logging.getLogger("store.tracing")

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORT_SECONDS: Final = 3
_FLUSH_MS: Final = 3000
_LENGTH: Final = 55
"""Of a `traceparent` of the W3C, version 00."""


class _Tracing:
    """The one of this process: None of it before `configure`, or where traces are off."""

    provider: Any = None
    tracer: Any = None


def configure(service: str) -> None:
    """Begin to export spans, if that is asked for. Call it in the process that makes them, after any fork."""
    if _Tracing.tracer is not None or not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces, though %s is set: install `tid-service[otel]` (%s)", " or ".join(_ENDPOINTS), error)
        return
    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    # A collector that hangs must not hold up the end of this process.
    timeout = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else _EXPORT_SECONDS
    provider = TracerProvider(resource=Resource.create(name))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=timeout)))
    _Tracing.provider, _Tracing.tracer = provider, provider.get_tracer("tid")


def is_on() -> bool:
    return _Tracing.tracer is not None


@contextmanager
def span(name: str, *, parent: str | None = None, kind: str = "internal", **attributes: Any) -> Iterator[Any]:
    """A span around what is done inside; its parent is the one around it, or `parent` where that is given.

    Args:
        parent: a `traceparent`; one that cannot be read begins a trace of its own.
        kind: internal, server, client, producer or consumer.

    Returns:
        The span, or None where traces are off.
    """
    if _Tracing.tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    context = _context(parent) if parent else None
    with _Tracing.tracer.start_as_current_span(
        name, context=context, kind=SpanKind[kind.upper()], attributes=_known(attributes)
    ) as current:
        yield current


def open_span(name: str, *, began: datetime | None = None, **attributes: Any) -> Any:
    """A span below the present one, to be ended with its `end()`; None where traces are off."""
    if _Tracing.tracer is None:
        return None
    start = None if began is None else int(began.timestamp() * 1e9)
    return _Tracing.tracer.start_span(name, start_time=start, attributes=_known(attributes))


def traceparent() -> str | None:
    """The present span as a `traceparent`, to go on from in another process; None where there is none."""
    if _Tracing.tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    found = carrier.get("traceparent")
    return found if found and len(found) == _LENGTH else None


def trace_id() -> str | None:
    """Of the present span, as log lines have it."""
    parent = traceparent()
    return None if parent is None else parent.split("-")[1]


def flush() -> None:
    """Send what was recorded, for a moment at most."""
    if _Tracing.provider is not None:
        _Tracing.provider.force_flush(_FLUSH_MS)


def stop() -> None:
    """Send what was recorded, and record nothing more."""
    provider, _Tracing.provider, _Tracing.tracer = _Tracing.provider, None, None
    if provider is not None:
        provider.shutdown()


def _context(parent: str) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent}, context=Context())


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in attributes.items() if value is not None}

//! What the sidecar counts. Labels are enums: nothing that a client sends becomes a label.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a request was carried out.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(crate) enum Route {
    /// One of the two-phase APIs, decoded without prefill elsewhere because no prefiller was named or configured.
    Decode,
    /// One of the two-phase APIs, decoded without prefill elsewhere because prefill failed.
    Fallback,
    /// Anything else.
    Forward,
    /// Prefill elsewhere, decode here.
    TwoPhase,
}

/// How one attempt at prefill ended.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(crate) enum Outcome {
    /// The prefiller had no room: 429.
    Busy,
    /// The prefiller broke off its answer, or it was too large or not JSON.
    Broken,
    /// No connection.
    Connect,
    /// The prefiller failed: 5xx.
    EngineError,
    /// The answer has no `kv_transfer_params`.
    NoParams,
    /// A ticket came back.
    Ok,
    /// The prefiller refused the request: any other status.
    Refused,
    /// The time for prefill was over.
    Timeout,
}

/// Why a client got an answer that is the sidecar's own.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(crate) enum Refused {
    BodyAborted,
    BodyTimeout,
    BodyTooLarge,
    DecodeSilent,
    DecodeUnreachable,
    InvalidJson,
    MethodNotAllowed,
    PrefillerInvalid,
    PrefillerNotAllowed,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RouteLabel {
    route: Route,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RefusedLabel {
    reason: Refused,
}

/// The counters of one sidecar.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<RouteLabel, Counter>,
    prefills: Family<OutcomeLabel, Counter>,
    refusals: Family<RefusedLabel, Counter>,
    pub(crate) prefill_seconds: Histogram,
    pub(crate) forged_params: Counter,
    pub(crate) broken_answers: Counter,
    pub(crate) connections: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            prefills: Family::default(),
            refusals: Family::default(),
            // 5 ms to 164 s: from a short prompt on an idle prefiller to a full queue at the default time limit.
            prefill_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 16)),
            forged_params: Counter::default(),
            broken_answers: Counter::default(),
            connections: Gauge::default(),
        };
        let sidecar = registry.sub_registry_with_prefix("kvferry_gateway_sidecar");
        sidecar.register("requests", "Requests sent to the decode engine, by how", metrics.requests.clone());
        sidecar.register("prefills", "Attempts at prefill elsewhere, by how they ended", metrics.prefills.clone());
        sidecar.register("refusals", "Answers that are the sidecar's own", metrics.refusals.clone());
        sidecar.register(
            "prefill_seconds",
            "Time of prefills that brought a ticket, failed attempts before them included",
            metrics.prefill_seconds.clone(),
        );
        sidecar.register(
            "forged_params",
            "Requests whose own kv_transfer_params were removed",
            metrics.forged_params.clone(),
        );
        sidecar.register(
            "broken_answers",
            "Answers that the decode engine began and did not finish",
            metrics.broken_answers.clone(),
        );
        sidecar.register("connections", "Client connections open now", metrics.connections.clone());
        metrics
    }

    pub(crate) fn count_request(&self, route: Route) {
        self.requests.get_or_create(&RouteLabel { route }).inc();
    }

    pub(crate) fn count_prefill(&self, outcome: Outcome) {
        self.prefills.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn count_refusal(&self, reason: Refused) {
        self.refusals.get_or_create(&RefusedLabel { reason }).inc();
    }
}

//! The daemon's metrics. The registry is passed in; labels are words of fixed lists.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kvferry_core::lease::EndReason;
use kvferry_core::transfer::Outcome;
use kvferry_memory::Meter;
use kvferry_proto::v1::Refusal;
use kvferry_transport::Fault;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::link_table::LINK_STATES;
use super::tier::metrics::TierMetrics;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Reason {
    pub(super) reason: &'static str,
}

/// Handles of all metrics; cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    engines: Gauge,
    links_in: Gauge,
    links_out: Family<State, Gauge>,
    links_refused: Counter,
    link_tries: Counter,
    link_ups: Counter,
    link_downs: Counter,
    regions: Gauge<i64>,
    region_bytes: Gauge<i64>,
    leases: Gauge,
    reading: Gauge,
    serving: Gauge,
    granted: Counter,
    ended: Family<Reason, Counter>,
    refused: Family<Reason, Counter>,
    transfers: Family<Reason, Counter>,
    read_bytes: Counter<u64, AtomicU64>,
    served: Family<Reason, Counter>,
    served_bytes: Counter<u64, AtomicU64>,
    seconds: Histogram,
    delivered: Counter,
    failed: Counter,
    pub(super) tier: TierMetrics,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            engines: Gauge::default(),
            links_in: Gauge::default(),
            links_out: Family::default(),
            links_refused: Counter::default(),
            link_tries: Counter::default(),
            link_ups: Counter::default(),
            link_downs: Counter::default(),
            regions: Gauge::default(),
            region_bytes: Gauge::default(),
            leases: Gauge::default(),
            reading: Gauge::default(),
            serving: Gauge::default(),
            granted: Counter::default(),
            ended: Family::default(),
            refused: Family::default(),
            transfers: Family::default(),
            read_bytes: Counter::default(),
            served: Family::default(),
            served_bytes: Counter::default(),
            // 0.1 ms to 26 s: from a small transfer on one node to the default deadline.
            seconds: Histogram::new(exponential_buckets(1e-4, 4.0, 10)),
            delivered: Counter::default(),
            failed: Counter::default(),
            tier: TierMetrics::default(),
        };
        let mut of = registry.sub_registry_with_prefix("kvferry");
        let registry = &mut of;
        metrics.tier.register(registry);
        registry.register("daemon_engines", "Engines attached", metrics.engines.clone());
        registry.register("link_in", "Endpoints that peers hold here", metrics.links_in.clone());
        registry.register("link_out", "Links to peers, by state", metrics.links_out.clone());
        registry.register("link_refused", "Endpoints refused to peers", metrics.links_refused.clone());
        registry.register("link_tries", "Calls for an endpoint at a peer that ended", metrics.link_tries.clone());
        registry.register("link_ups", "Links that came up", metrics.link_ups.clone());
        registry.register("link_downs", "Links that went down", metrics.link_downs.clone());
        registry.register("memory_regions", "Regions mapped", metrics.regions.clone());
        registry.register("memory_region_bytes", "Bytes of regions mapped", metrics.region_bytes.clone());
        registry.register("lease_live", "Leases that have not ended", metrics.leases.clone());
        registry.register("lease_granted", "Leases granted", metrics.granted.clone());
        registry.register("lease_ended", "Leases ended, by reason", metrics.ended.clone());
        registry.register("ticket_refused", "Tickets refused, by reason", metrics.refused.clone());
        registry.register("transfer_reading", "Transfers into this node in flight", metrics.reading.clone());
        registry.register("transfer_serving", "Transfers out of this node in flight", metrics.serving.clone());
        registry.register("transfer_read", "Transfers into this node, by outcome", metrics.transfers.clone());
        registry.register("transfer_read_bytes", "Bytes delivered to engines of this node", metrics.read_bytes.clone());
        registry.register("transfer_served", "Transfers out of this node, by outcome", metrics.served.clone());
        registry.register("transfer_served_bytes", "Bytes served to peers", metrics.served_bytes.clone());
        registry.register_with_unit(
            "transfer_read",
            "Time from redeem to outcome",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        metrics
    }

    pub(super) fn gauges(&self, engines: usize, leases: usize, reading: usize, serving: usize, meter: &Meter) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.engines.set(number(engines));
        self.leases.set(number(leases));
        self.reading.set(number(reading));
        self.serving.set(number(serving));
        self.regions.set(i64::try_from(meter.regions()).unwrap_or(i64::MAX));
        self.region_bytes.set(i64::try_from(meter.bytes()).unwrap_or(i64::MAX));
    }

    /// States of the links to peers, and how many endpoints peers hold here.
    pub(super) fn links<'a>(&self, states: impl Iterator<Item = &'a str>, inward: usize) {
        let mut counts = LINK_STATES.map(|_| 0_i64);
        for state in states {
            for (count, _) in counts.iter_mut().zip(LINK_STATES).filter(|(_, word)| *word == state) {
                *count += 1;
            }
        }
        for (state, count) in LINK_STATES.into_iter().zip(counts) {
            self.links_out.get_or_create(&State { state }).set(count);
        }
        self.links_in.set(i64::try_from(inward).unwrap_or(i64::MAX));
    }

    pub(super) fn link_tried(&self) {
        self.link_tries.inc();
    }

    pub(super) fn link_came_up(&self) {
        self.link_ups.inc();
    }

    pub(super) fn link_went_down(&self) {
        self.link_downs.inc();
    }

    pub(super) fn link_refused(&self) {
        self.links_refused.inc();
    }

    pub(super) fn lease_granted(&self) {
        self.granted.inc();
    }

    pub(super) fn lease_ended(&self, reason: EndReason) {
        self.ended.get_or_create(&Reason { reason: reason.word() }).inc();
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Endpoint => "endpoint",
            Refusal::Fingerprint => "fingerprint",
            Refusal::Lease => "lease",
            Refusal::Limit => "limit",
            Refusal::Request => "request",
            Refusal::Ticket => "ticket",
            Refusal::Unspecified => "unspecified",
        };
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn transferred(&self, outcome: Outcome, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let reason = match outcome {
            Outcome::Delivered { bytes } => {
                self.read_bytes.inc_by(bytes);
                self.delivered.inc();
                "delivered"
            }
            Outcome::Failed(failure) => {
                self.failed.inc();
                failure.word()
            }
        };
        self.transfers.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn served(&self, result: Result<u64, Fault>) {
        let reason = match result {
            Ok(bytes) => {
                self.served_bytes.inc_by(bytes);
                "served"
            }
            Err(fault) => fault.label(),
        };
        self.served.get_or_create(&Reason { reason }).inc();
    }

    /// Delivered, failed, bytes delivered.
    pub(super) fn transfer_totals(&self) -> (u64, u64, u64) {
        (self.delivered.get(), self.failed.get(), self.read_bytes.get())
    }
}

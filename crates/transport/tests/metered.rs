//! What a metered transport counts.

use std::sync::Arc;

use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::Plan;
use kvferry_core::{Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{
    CopySettings, CopyTransport, Counts, Event, Fault, Metered, ReadWork, Source, Transport, Work,
};

fn read(id: u64, lease: &LeaseGate) -> Work {
    let region = || {
        let fd = kvferry_memory::create("kvferry-metered", 4096).expect("make memory");
        Region::map(fd, 4096, &Meter::new()).expect("map memory")
    };
    Work::Read(ReadWork {
        id: WorkId(id),
        plan: Arc::new(Plan::default()),
        target: region(),
        source: Source::Region { region: region(), lease: lease.clone() },
        deadline: Time::NEVER,
    })
}

#[test]
fn posts_completions_and_faults_are_counted() {
    let counts = Arc::new(Counts::default());
    let settings = CopySettings { works_max: 2, ..CopySettings::default() };
    let mut transport = Metered::new(Box::new(CopyTransport::new(settings)), Arc::clone(&counts));
    let (now, live, ended) = (Time::from_nanos(1), LeaseGate::new(Time::NEVER), LeaseGate::new(Time::NEVER));
    ended.close();

    let endpoint = transport.endpoint(CopyTransport::ENDPOINT).expect("always up");
    endpoint.post(now, read(1, &live)).expect("room for two");
    endpoint.post(now, read(2, &ended)).expect("room for two");
    assert_eq!(endpoint.post(now, read(3, &live)).expect_err("no room for three").0, Fault::Full);
    assert_eq!(endpoint.in_flight(), 2);
    assert_eq!((counts.totals().posted, counts.totals().handed_back, counts.totals().in_flight()), (2, 1, 2));

    let mut events = Vec::new();
    while transport.turn(now, &mut events) {}
    let totals = counts.totals();
    assert_eq!((totals.completed, totals.bytes, totals.in_flight()), (1, 0, 0));
    assert_eq!((totals.failed_by(Fault::LeaseEnded), totals.failed.iter().sum()), (1, 1u64));

    transport.close(now, CopyTransport::ENDPOINT);
    while transport.turn(now, &mut events) {}
    assert_eq!(counts.totals().endpoints_down, 1);
    assert!(matches!(events.last(), Some(Event::EndpointDown(..))), "{events:?}");
}

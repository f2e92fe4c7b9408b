//! A paced endpoint keeps to its pace, and every stream gets its share of it: none seems stalled to the reader.

use std::sync::Arc;
use std::time::Duration;

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::{BlockIndex, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{
    Admission, Dial, EndpointId, Event, ReadWork, Role, ServeWork, Source, Start, Transport, Work,
};
use kvferry_transport_tcp::frame::HELLO_BYTES;
use kvferry_transport_tcp::{Settings, TcpTransport};

const ENDPOINT: EndpointId = EndpointId(1);
const WORK: WorkId = WorkId(1);
const BYTES: u32 = 16 << 20;
const BYTES_PER_SECOND: u64 = 1 << 20;
const STREAMS: u8 = 4;

/// Two transports under a clock that only moves when neither they nor the wire have anything to do.
struct Pair {
    reader: TcpTransport,
    holder: TcpTransport,
    now: Time,
    events: Vec<Event>,
}

impl Pair {
    /// Whether bytes have left one end and not come to the other: then time must not jump over their arrival.
    fn is_underway(&self) -> bool {
        let (reader, holder) = (self.reader.counters(), self.holder.counters());
        // A Hello is read at the door, where nobody counts it.
        let hellos = u64::from(STREAMS) * HELLO_BYTES as u64;
        holder.bytes_sent != reader.bytes_received || reader.bytes_sent != holder.bytes_received + hellos
    }

    fn until(&mut self, mut seen: impl FnMut(&[Event]) -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !seen(&self.events) {
            assert!(std::time::Instant::now() < end, "waited too long after {:?}", self.events);
            let busy = [&mut self.holder, &mut self.reader].map(|end| end.turn(self.now, &mut self.events));
            if busy == [false, false] && !self.is_underway() && !seen(&self.events) {
                let due = [&self.holder, &self.reader].into_iter().filter_map(Transport::next_deadline).min();
                self.now = self.now.max(due.unwrap_or(self.now));
            }
        }
    }
}

fn region() -> Arc<Region> {
    let fd = kvferry_memory::create("pace", BYTES.into()).expect("create");
    Region::map(fd, BYTES.into(), &Meter::new()).expect("map")
}

fn plan() -> Arc<Plan> {
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: BYTES.into(),
        block_stride: BYTES.into(),
        head_count: 1,
        token_count: 1,
        content_bytes: BYTES,
    };
    let groups = vec![GroupLayout { spans: vec![span] }];
    let layout = Layout::new(AxisOrder::Lbnhc, 1, BYTES.into(), groups).expect("a layout of one block");
    let blocks = [GroupBlocks { group: 0, source: vec![BlockIndex(0)], target: vec![BlockIndex(0)] }];
    Arc::new(Plan::compile(&layout, &layout, &blocks).expect("a plan of one block"))
}

#[test]
fn a_slow_endpoint_is_slow_and_nothing_else() {
    let settings = Settings { endpoint_bytes_per_second_max: Some(BYTES_PER_SECOND), ..Settings::default() };
    let bind = || TcpTransport::bind(([127, 0, 0, 1], 0).into(), &settings).expect("bind");
    let mut pair = Pair { reader: bind(), holder: bind(), now: Time::from_nanos(1), events: Vec::new() };
    let keys: Vec<_> = (0..STREAMS).map(|stream| [stream; 32]).collect();
    let address = pair.holder.local_addr().expect("ask for the address");
    let admission = Admission { endpoint: ENDPOINT, role: Role::Serves, keys: keys.clone(), expires: Time::NEVER };
    pair.holder.admit(pair.now, admission).expect("admit");
    pair.reader
        .connect(pair.now, Dial { endpoint: ENDPOINT, role: Role::Reads, address, keys, deadline: Time::NEVER })
        .expect("connect");
    pair.until(|events| events == [Event::EndpointUp(ENDPOINT); 2]);
    pair.events.clear();

    let (plan, start) = (plan(), pair.now);
    let serve = ServeWork {
        id: WORK,
        plan: Arc::clone(&plan),
        source: region(),
        lease: LeaseGate::new(Time::NEVER),
        start: Start::Fetched,
        deadline: Time::NEVER,
    };
    let read =
        ReadWork { id: WORK, plan, target: region(), source: Source::Peer { work: WORK }, deadline: Time::NEVER };
    pair.holder.endpoint(ENDPOINT).expect("up").post(start, Work::Serve(serve)).expect("post a serve");
    pair.reader.endpoint(ENDPOINT).expect("up").post(start, Work::Read(read)).expect("post a read");
    pair.until(|events| events.len() == 2);
    for event in &pair.events {
        let Event::Completed(completion) = event else { panic!("{event:?}") };
        assert_eq!(completion.result, Ok(u64::from(BYTES)));
    }
    // Longer than the reader waits for a stream, so each stream had its share all along.
    let took = pair.now.until(start);
    let slack = Duration::from_millis(100);
    assert!(took.abs_diff(Duration::from_secs(u64::from(BYTES) / BYTES_PER_SECOND)) < slack, "{took:?}");
}

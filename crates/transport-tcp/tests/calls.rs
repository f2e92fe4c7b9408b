//! What a transfer costs in system calls: a small one takes one send and one receive each way, fetched or pushed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::{BlockIndex, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{
    Admission, Dial, EndpointId, Event, ReadWork, Role, ServeWork, Source, Start, Transport, Work,
};
use kvferry_transport_tcp::{Io, Settings, TcpTransport};

const ENDPOINT: EndpointId = EndpointId(1);
const BYTES: u32 = 64;
const NOW: Time = Time::from_nanos(1);

struct Pair {
    reader: TcpTransport,
    holder: TcpTransport,
    events: Vec<Event>,
}

impl Pair {
    fn new() -> Self {
        let settings = Settings { io: Io::Epoll, ..Settings::default() };
        let bind = || TcpTransport::bind(([127, 0, 0, 1], 0).into(), &settings).expect("bind");
        let (mut reader, mut holder) = (bind(), bind());
        let (address, keys) = (holder.local_addr().expect("an address"), vec![[1; 32]]);
        let admission = Admission { endpoint: ENDPOINT, role: Role::Serves, keys: keys.clone(), expires: Time::NEVER };
        holder.admit(NOW, admission).expect("admit");
        let dial = Dial { endpoint: ENDPOINT, role: Role::Reads, address, keys, deadline: Time::NEVER };
        reader.connect(NOW, dial).expect("connect");
        let mut pair = Self { reader, holder, events: Vec::new() };
        pair.until(|events| events == [Event::EndpointUp(ENDPOINT); 2]);
        pair.events.clear();
        pair
    }

    fn until(&mut self, mut seen: impl FnMut(&[Event]) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !seen(&self.events) {
            assert!(Instant::now() < end, "waited too long after {:?}", self.events);
            // The bytes of one end arrive before the other's next turn or a later one: no call depends on which.
            self.holder.turn(NOW, &mut self.events);
            self.reader.turn(NOW, &mut self.events);
        }
    }

    fn sends(&self) -> [u64; 2] {
        [&self.holder, &self.reader].map(|end| end.counters().send_calls)
    }

    /// Sends of holder and reader for one transfer of one small block.
    fn transfer(&mut self, id: WorkId, start: Start) -> [u64; 2] {
        let before = self.sends();
        let source = match start {
            Start::Fetched => Source::Peer { work: id },
            Start::Pushed => Source::Pushed { work: id },
        };
        let (plan, lease, deadline) = (plan(), LeaseGate::new(Time::NEVER), Time::NEVER);
        let read = ReadWork { id, plan: Arc::clone(&plan), target: region(), source, deadline };
        let serve = ServeWork { id, plan, source: region(), lease, start, deadline };
        // The reader's Fetch leaves in its next turn, so the work is there when it comes.
        self.reader.endpoint(ENDPOINT).expect("up").post(NOW, Work::Read(read)).expect("post a read");
        self.holder.endpoint(ENDPOINT).expect("up").post(NOW, Work::Serve(serve)).expect("post a serve");
        self.until(|events| events.len() == 2);
        for event in self.events.drain(..) {
            let Event::Completed(completion) = event else { panic!("{event:?}") };
            assert_eq!(completion.result, Ok(u64::from(BYTES)));
        }
        let after = self.sends();
        [after[0] - before[0], after[1] - before[1]]
    }
}

fn region() -> Arc<Region> {
    let fd = kvferry_memory::create("calls", 4096).expect("create");
    Region::map(fd, 4096, &Meter::new()).expect("map")
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
    let layout = Layout::new(AxisOrder::Lbnhc, 1, BYTES.into(), vec![GroupLayout { spans: vec![span] }]);
    let layout = layout.expect("a layout of one block");
    let blocks = [GroupBlocks { group: 0, source: vec![BlockIndex(0)], target: vec![BlockIndex(0)] }];
    Arc::new(Plan::compile(&layout, &layout, &blocks).expect("a plan of one block"))
}

#[test]
fn a_small_transfer_is_one_send_each_way() {
    let mut pair = Pair::new();
    for round in 0..10 {
        assert_eq!(pair.transfer(WorkId(2 * round + 1), Start::Fetched), [1, 1], "bytes for a Fetch");
        assert_eq!(pair.transfer(WorkId(2 * round + 2), Start::Pushed), [1, 1], "bytes for a Receipt");
    }
}

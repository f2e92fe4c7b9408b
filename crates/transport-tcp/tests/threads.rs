//! An endpoint over two threads, and plain sockets as its peer: who gets in, and what one thread's end does to the
//! other's works.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::{BlockIndex, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{
    Admission, Completion, EndpointId, Event, Fault, Key, Role, ServeWork, Start, Transport, Work,
};
use kvferry_transport_tcp::frame::{Frame, HEADER_BYTES, Outcome, Tag};
use kvferry_transport_tcp::{Settings, TcpTransport, Threads};

const ENDPOINT: EndpointId = EndpointId(4);
const KEYS: [Key; 2] = [[1; 32], [2; 32]];
const WORK: WorkId = WorkId(9);
/// A small work, which the first stream carries alone.
const BYTES: u32 = 64;

struct Stage {
    transport: TcpTransport,
    start: Instant,
    events: Vec<Event>,
}

impl Stage {
    /// A holder that lets two streams in, one for each thread.
    fn new() -> Self {
        let start = Instant::now();
        let threads = Threads { count: 2, clock: Arc::new(move || Time::from_start(start.elapsed())) };
        let address = ([127, 0, 0, 1], 0).into();
        let mut transport =
            TcpTransport::bind_threads(address, &Settings::default(), &threads).expect("bind to loopback");
        let admission = Admission { endpoint: ENDPOINT, role: Role::Serves, keys: KEYS.to_vec(), expires: Time::NEVER };
        transport.admit(Time::default(), admission).expect("admit");
        Self { transport, start, events: Vec::new() }
    }

    fn address(&self) -> SocketAddr {
        self.transport.local_addr().expect("an address")
    }

    fn until(&mut self, what: &str, mut seen: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !seen(self) {
            assert!(Instant::now() < end, "waited in vain for {what} after {:?}", self.events);
            let now = Time::from_start(self.start.elapsed());
            if !self.transport.turn(now, &mut self.events) {
                std::thread::yield_now();
            }
        }
    }

    fn post(&mut self, serve: ServeWork) {
        let endpoint = self.transport.endpoint(ENDPOINT).expect("up");
        endpoint.post(Time::default(), Work::Serve(serve)).expect("post");
    }

    /// Both streams, welcomed.
    fn joined(&mut self) -> [TcpStream; 2] {
        let mut streams = [0, 1].map(|index| hello(self.address(), index, KEYS[index as usize]));
        self.until("the endpoint", |stage| stage.events == [Event::EndpointUp(ENDPOINT)]);
        self.events.clear();
        for stream in &mut streams {
            assert_eq!(next_frame(stream), Frame::Welcome);
        }
        streams
    }
}

fn hello(address: SocketAddr, stream: u32, key: Key) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("connect");
    socket.write_all(&Frame::hello(ENDPOINT, stream, &key)).expect("say hello");
    socket
}

/// Serves this many bytes in one block.
fn serve(bytes: u32, lease: LeaseGate) -> ServeWork {
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: bytes.into(),
        block_stride: bytes.into(),
        head_count: 1,
        token_count: 1,
        content_bytes: bytes,
    };
    let layout = Layout::new(AxisOrder::Lbnhc, 1, bytes.into(), vec![GroupLayout { spans: vec![span] }]);
    let layout = layout.expect("a layout of one block");
    let blocks = [GroupBlocks { group: 0, source: vec![BlockIndex(0)], target: vec![BlockIndex(0)] }];
    let plan = Arc::new(Plan::compile(&layout, &layout, &blocks).expect("a plan of one block"));
    let fd = kvferry_memory::create("threads", bytes.into()).expect("create");
    let source = Region::map(fd, bytes.into(), &Meter::new()).expect("map");
    ServeWork { id: WORK, plan, source, lease, start: Start::Fetched, deadline: Time::NEVER }
}

#[test]
fn a_stream_that_ends_on_one_thread_ends_works_of_the_other_for_the_same_reason() {
    for gone in [0, 1] {
        let mut stage = Stage::new();
        let [first, second] = stage.joined();
        stage.post(serve(BYTES, LeaseGate::new(Time::NEVER)));
        let _stays = if gone == 0 {
            drop(first);
            second
        } else {
            drop(second);
            first
        };
        stage.until("the end", |stage| stage.events.len() == 2);
        let fault = Fault::PeerClosed;
        let ended = Event::Completed(Completion { id: WORK, result: Err(fault) });
        assert_eq!(stage.events, [ended, Event::EndpointDown(ENDPOINT, fault)], "stream {gone} went");
        assert!(stage.transport.endpoint(ENDPOINT).is_none());
    }
}

fn next_frame(stream: &mut TcpStream) -> Frame {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).expect("a frame");
    Frame::decode(&header).expect("of ours")
}

#[test]
fn a_fetch_that_comes_late_hears_why_the_work_ended_at_the_other_thread() {
    let mut stage = Stage::new();
    let mut streams = stage.joined();
    // Large enough for both.
    let work = serve(1 << 20, LeaseGate::new(Time::NEVER));
    let (digest, lease) = (work.plan.digest(), work.lease.clone());
    stage.post(work);
    lease.close();
    for (index, stream) in streams.iter_mut().enumerate() {
        let tag = Tag(7 + index as u64);
        stream.write_all(&Frame::Fetch { work: WORK, tag, digest }.encode()).expect("fetch");
        stage.until("the end of the work", |stage| !stage.events.is_empty());
        let ended = Event::Completed(Completion { id: WORK, result: Err(Fault::LeaseEnded) });
        assert_eq!(stage.events, [ended], "once");
        stream.set_nonblocking(true).expect("set up");
        stage.until("a word", |_| stream.peek(&mut [0; HEADER_BYTES]).is_ok_and(|bytes| bytes == HEADER_BYTES));
        stream.set_nonblocking(false).expect("set up");
        let word = next_frame(stream);
        let outcome = Outcome::LeaseEnded;
        assert_eq!(word, Frame::Trailer { work: WORK, tag, bytes: 0, digest, outcome }, "stream {index}");
    }
}

#[test]
fn only_good_keys_get_in_at_either_thread_and_once() {
    let mut stage = Stage::new();
    let address = stage.address();
    // A wrong key for each thread, a stream that there is not, and the other stream's key.
    let refused = [hello(address, 0, [9; 32]), hello(address, 1, [9; 32]), hello(address, 2, KEYS[1])];
    let swapped = hello(address, 1, KEYS[0]);
    for mut socket in refused.into_iter().chain([swapped]) {
        socket.set_nonblocking(true).expect("set up");
        stage.until("a caller to be let go", |_| match socket.read(&mut [0; 1]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        });
    }
    assert!(stage.events.is_empty(), "{:?}", stage.events);
    let _streams = stage.joined();
    let mut late = hello(address, 1, KEYS[1]);
    late.set_nonblocking(true).expect("set up");
    stage.until("a caller with a used key to be let go", |_| matches!(late.read(&mut [0; 1]), Ok(0)));
    assert!(stage.transport.endpoint(ENDPOINT).is_some());
}

#[test]
fn a_pace_is_kept_by_one_thread() {
    let threads = Threads { count: 4, clock: Arc::new(Time::default) };
    let count = |endpoint_bytes_per_second_max| {
        let settings = Settings { endpoint_bytes_per_second_max, ..Settings::default() };
        let transport = TcpTransport::bind_threads(([127, 0, 0, 1], 0).into(), &settings, &threads);
        transport.expect("bind to loopback").thread_count()
    };
    assert_eq!((count(None), count(Some(1 << 30))), (4, 1));
}

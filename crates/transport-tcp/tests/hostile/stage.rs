//! One transport, a clock that can be pushed forward, and plain sockets that play its peers.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_core::layout::{AxisOrder, GroupLayout, LayerSpan, Layout};
use kvferry_core::lease::LeaseGate;
use kvferry_core::plan::{GroupBlocks, Plan};
use kvferry_core::{BlockIndex, Time, WorkId};
use kvferry_memory::{Meter, Region};
use kvferry_transport::{
    Admission, Dial, Endpoint, EndpointId, Event, Fault, Key, ReadWork, Role, ServeWork, Source, Start, Transport, Work,
};
use kvferry_transport_tcp::frame::{Frame, HEADER_BYTES, HELLO_BYTES, Outcome, Tag};
use kvferry_transport_tcp::{Io, Settings, TcpTransport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long anything may take on a loaded machine; a bug takes forever.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const KEY: Key = [0x5a; 32];
pub(crate) const ENDPOINT: EndpointId = EndpointId(11);
pub(crate) const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

pub(crate) struct Stage {
    pub(crate) transport: TcpTransport,
    start: Instant,
    skipped: Duration,
    results: HashMap<WorkId, Result<u64, Fault>>,
    ups: Vec<EndpointId>,
    downs: HashMap<EndpointId, Fault>,
}

impl Stage {
    pub(crate) fn new(settings: &Settings) -> Self {
        // TLS runs over epoll, whatever the rest runs on.
        let io = if settings.tls.is_some() { Io::Epoll } else { crate::io() };
        let settings = Settings { io, ..settings.clone() };
        Self {
            transport: TcpTransport::bind((LOCALHOST, 0).into(), &settings).expect("bind to loopback"),
            start: Instant::now(),
            skipped: Duration::ZERO,
            results: HashMap::new(),
            ups: Vec::new(),
            downs: HashMap::new(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time::from_start(self.start.elapsed() + self.skipped)
    }

    /// Makes deadlines pass without waiting for them.
    pub(crate) fn skip(&mut self, by: Duration) {
        self.skipped += by;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.transport.local_addr().expect("ask for the address")
    }

    /// One turn; what it reports is checked and kept.
    fn turn(&mut self) -> bool {
        let mut events = Vec::new();
        let now = self.now();
        let busy = self.transport.turn(now, &mut events);
        for event in events {
            match event {
                Event::Completed(completion) => {
                    let before = self.results.insert(completion.id, completion.result);
                    assert_eq!(before, None, "work {} completed twice", completion.id);
                }
                Event::EndpointUp(id) => self.ups.push(id),
                Event::EndpointDown(id, fault) => {
                    assert_eq!(self.downs.insert(id, fault), None, "endpoint {id:?} went down twice");
                }
            }
        }
        busy
    }

    /// Turns until there is something to return.
    pub(crate) fn until<T>(&mut self, what: &str, mut ready: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = ready(self) {
                return found;
            }
            assert!(Instant::now() < end, "waited too long for {what}");
            if !self.turn() {
                let now = self.now();
                let due = self.transport.next_deadline().unwrap_or(Time::NEVER).until(now);
                // The plain sockets are not in the transport's epoll, so look at them often.
                let wait = due.min(Duration::from_millis(1));
                let fd = self.transport.wait_fd().expect("an epoll");
                let timeout = Timespec::try_from(wait).expect("a short wait");
                poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::IN)], Some(&timeout)).expect("poll");
            }
        }
    }

    pub(crate) fn result(&mut self, id: WorkId) -> Result<u64, Fault> {
        self.until("a completion", |stage| stage.results.get(&id).copied())
    }

    pub(crate) fn down(&mut self, id: EndpointId) -> Fault {
        self.until("an endpoint to go down", |stage| stage.downs.get(&id).copied())
    }

    pub(crate) fn is_down(&self, id: EndpointId) -> bool {
        self.downs.contains_key(&id)
    }

    pub(crate) fn is_up(&self, id: EndpointId) -> bool {
        self.ups.contains(&id)
    }

    /// How a work ended, if it has.
    pub(crate) fn outcome(&self, id: WorkId) -> Option<Result<u64, Fault>> {
        self.results.get(&id).copied()
    }

    /// Turns until the transport has nothing left to do at this moment.
    pub(crate) fn settle(&mut self) {
        self.until("quiet", |stage| (!stage.turn()).then_some(()));
    }

    /// Waits for the transport to have something to do, then lets it have one turn.
    pub(crate) fn turn_once_readable(&mut self) {
        let fd = self.transport.wait_fd().expect("an epoll");
        let timeout = Timespec::try_from(PATIENCE).expect("a short wait");
        let ready = poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::IN)], Some(&timeout)).expect("poll");
        assert_eq!(ready, 1, "nothing came");
        self.turn();
    }

    /// Reads exactly `length` bytes that the transport sends.
    pub(crate) fn read(&mut self, socket: &mut TcpStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut have = 0;
        self.until("bytes from the transport", |_| {
            while have < length {
                match socket.read(&mut bytes[have..]) {
                    Ok(0) => panic!("closed after {have} of {length} bytes"),
                    Ok(more) => have += more,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                    Err(error) => panic!("{error} after {have} of {length} bytes"),
                }
            }
            Some(())
        });
        bytes
    }

    pub(crate) fn read_frame(&mut self, socket: &mut TcpStream) -> Frame {
        let bytes = self.read(socket, HEADER_BYTES);
        Frame::decode(bytes.first_chunk().expect("a header")).expect("a frame")
    }

    /// Waits until the transport has closed the connection, having said nothing on it.
    pub(crate) fn expect_silent_close(&mut self, socket: &mut TcpStream) {
        let mut byte = [0];
        self.until("the connection to be closed", |_| match socket.read(&mut byte) {
            Ok(0) => Some(()),
            Ok(_) => panic!("it answered"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(()),
        });
    }

    /// Writes all of it, while the transport turns.
    pub(crate) fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) {
        let mut sent = 0;
        self.until("the transport to read", |_| {
            while sent < bytes.len() {
                match socket.write(&bytes[sent..]) {
                    Ok(more) => sent += more,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                    // It may close on us for what we said.
                    Err(_) => return Some(()),
                }
            }
            Some(())
        });
    }

    /// A connection to the transport, about which nothing is known yet.
    pub(crate) fn call(&self) -> TcpStream {
        plain(TcpStream::connect(self.address()).expect("connect"))
    }

    pub(crate) fn admit(&mut self, endpoint: EndpointId, keys: &[Key], expires: Time) {
        let now = self.now();
        self.transport
            .admit(now, Admission { endpoint, role: Role::Serves, keys: keys.to_vec(), expires })
            .expect("admit");
    }

    /// The transport holds, we read: an endpoint of one stream, up.
    pub(crate) fn play_reader(&mut self, endpoint: EndpointId) -> TcpStream {
        self.admit(endpoint, &[KEY], Time::NEVER);
        let mut socket = self.call();
        self.write(&mut socket, &Frame::hello(endpoint, 0, &KEY));
        assert_eq!(self.read_frame(&mut socket), Frame::Welcome);
        self.wait_up(endpoint);
        socket
    }

    /// The transport dials us, the Hellos came: an endpoint that is not up.
    pub(crate) fn answer_dial(&mut self, endpoint: EndpointId, keys: &[Key], deadline: Time) -> Vec<TcpStream> {
        let listener = TcpListener::bind((LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("ask for the address");
        let now = self.now();
        self.transport
            .connect(now, Dial { endpoint, role: Role::Reads, address, keys: keys.to_vec(), deadline })
            .expect("connect");
        let mut sockets: Vec<Option<TcpStream>> = keys.iter().map(|_| None).collect();
        for _ in keys {
            let mut socket = plain(listener.accept().expect("accept").0);
            let hello = self.read(&mut socket, HELLO_BYTES);
            // They need not come in the order in which they were dialled.
            let stream = (0..).zip(keys).position(|(index, key)| hello == Frame::hello(endpoint, index, key));
            sockets[stream.expect("a good Hello")] = Some(socket);
        }
        sockets.into_iter().map(|socket| socket.expect("each stream once")).collect()
    }

    /// The transport reads, we hold: an endpoint of one stream, up.
    pub(crate) fn play_holder(&mut self, endpoint: EndpointId) -> TcpStream {
        let mut sockets = self.play_holder_of(endpoint, &[KEY]);
        sockets.pop().expect("one stream")
    }

    /// The same with a stream for each key.
    pub(crate) fn play_holder_of(&mut self, endpoint: EndpointId, keys: &[Key]) -> Vec<TcpStream> {
        let mut sockets = self.answer_dial(endpoint, keys, Time::NEVER);
        for socket in &mut sockets {
            self.write(socket, &Frame::Welcome.encode());
        }
        self.wait_up(endpoint);
        sockets
    }

    fn wait_up(&mut self, endpoint: EndpointId) {
        self.until("the endpoint to come up", |stage| stage.ups.contains(&endpoint).then_some(()));
    }

    pub(crate) fn endpoint(&mut self, id: EndpointId) -> &mut dyn Endpoint {
        self.transport.endpoint(id).expect("the endpoint is up")
    }

    pub(crate) fn cancel(&mut self, endpoint: EndpointId, id: WorkId) {
        let now = self.now();
        self.endpoint(endpoint).cancel(now, id);
    }

    /// Posts a read of all of `plan`; returns what the Fetch that we receive calls it.
    pub(crate) fn read_work(
        &mut self,
        socket: &mut TcpStream,
        id: WorkId,
        plan: &Arc<Plan>,
        target: &Arc<Region>,
    ) -> Tag {
        self.read_work_until(socket, id, plan, target, Time::NEVER)
    }

    pub(crate) fn read_work_until(
        &mut self,
        socket: &mut TcpStream,
        id: WorkId,
        plan: &Arc<Plan>,
        target: &Arc<Region>,
        deadline: Time,
    ) -> Tag {
        let source = Source::Peer { work: holder_id(id) };
        let read = ReadWork { id, plan: Arc::clone(plan), target: Arc::clone(target), source, deadline };
        let now = self.now();
        self.endpoint(ENDPOINT).post(now, Work::Read(read)).expect("post a read");
        match self.read_frame(socket) {
            Frame::Fetch { work, tag, digest } if work == holder_id(id) && digest == plan.digest() => tag,
            frame => panic!("{frame:?} instead of a Fetch"),
        }
    }

    pub(crate) fn serve_work(
        &mut self,
        endpoint: EndpointId,
        id: WorkId,
        plan: &Arc<Plan>,
        source: &Arc<Region>,
    ) -> LeaseGate {
        self.serve_work_until(endpoint, id, plan, source, Time::NEVER)
    }

    pub(crate) fn serve_work_until(
        &mut self,
        endpoint: EndpointId,
        id: WorkId,
        plan: &Arc<Plan>,
        source: &Arc<Region>,
        deadline: Time,
    ) -> LeaseGate {
        let lease = LeaseGate::new(Time::NEVER);
        let (plan, source) = (Arc::clone(plan), Arc::clone(source));
        let serve = ServeWork { id, plan, source, lease: lease.clone(), start: Start::Fetched, deadline };
        let now = self.now();
        self.endpoint(endpoint).post(now, Work::Serve(serve)).expect("post a serve");
        lease
    }
}

fn plain(socket: TcpStream) -> TcpStream {
    socket.set_nonblocking(true).expect("non-blocking");
    socket.set_nodelay(true).expect("no delay");
    socket
}

/// Makes the next close a reset.
pub(crate) fn reset(socket: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("linger");
    drop(socket);
}

/// What the holder calls the work that we read as `id`.
pub(crate) fn holder_id(id: WorkId) -> WorkId {
    WorkId(id.0 + 1000)
}

/// A region, and a plan that reads all of it in place.
pub(crate) fn whole(bytes: u32) -> Arc<Plan> {
    let span = LayerSpan {
        layer_count: 1,
        offset: 0,
        layer_stride: u64::from(bytes),
        block_stride: u64::from(bytes),
        head_count: 1,
        token_count: 1,
        content_bytes: bytes,
    };
    let layout = Layout::new(AxisOrder::Lbnhc, 1, u64::from(bytes), vec![GroupLayout { spans: vec![span] }]);
    let layout = layout.expect("a layout of one block");
    let blocks = [GroupBlocks { group: 0, source: vec![BlockIndex(0)], target: vec![BlockIndex(0)] }];
    Arc::new(Plan::compile(&layout, &layout, &blocks).expect("a plan of one block"))
}

pub(crate) fn region(bytes: u32, fill: u8) -> Arc<Region> {
    let fd = kvferry_memory::create("hostile", bytes.into()).expect("create");
    let region = Region::map(fd, bytes.into(), &Meter::new()).expect("map");
    refill(&region, fill);
    region
}

pub(crate) fn refill(region: &Region, fill: u8) {
    region.write(0, &vec![fill; usize::try_from(region.len()).expect("fits")]).expect("write");
}

pub(crate) fn content(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(region.len()).expect("fits")];
    region.read(0, &mut bytes).expect("read");
    bytes
}

/// A piece as a good holder makes it.
pub(crate) fn piece(id: WorkId, tag: Tag, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small piece");
    let checksum = Some(crc32c::crc32c(payload));
    let mut bytes = Frame::Piece { work: holder_id(id), tag, sequence, length, checksum }.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// A trailer as a good holder makes it.
pub(crate) fn trailer(id: WorkId, tag: Tag, plan: &Plan, outcome: Outcome) -> Vec<u8> {
    Frame::Trailer { work: holder_id(id), tag, bytes: plan.bytes(), digest: plan.digest(), outcome }.encode().to_vec()
}

//! The suite every transport passes, over loopback: in the clear and under TLS, on a ring, and with several threads at
//! one end or at both.

mod certificates;

use std::sync::{Arc, LazyLock};

use kvferry_core::Time;
use kvferry_transport::conformance::{Clock, Rig};
use kvferry_transport::{Admission, Dial, EndpointId, Role, Transport};
use kvferry_transport_tcp::{Io, Pem, Settings, TcpTransport, Threads, Tls, probe_uring};

use crate::certificates::{Authority, NAME};

const WORKS_MAX: usize = 64;

static TLS: LazyLock<Arc<Tls>> = LazyLock::new(|| {
    let authority = Authority::new();
    let (certificate, key) = authority.identity(NAME, 4000);
    let (certificate, key, authority) = (certificate.as_bytes(), key.as_bytes(), authority.pem());
    Arc::new(Tls::new(&Pem { certificate, key, authority: authority.as_bytes(), name: NAME }).expect("usable"))
});

fn pair(clock: &Clock, streams: u8, dialler: Role) -> Rig {
    pair_with(clock, streams, dialler, Settings::default())
}

fn pair_under_tls(clock: &Clock, streams: u8, dialler: Role) -> Rig {
    pair_with(clock, streams, dialler, Settings { tls: Some(Arc::clone(&TLS)), ..Settings::default() })
}

/// Over `io_uring`; where that is missing the property is held over epoll once more, and says so by name.
fn pair_on_a_ring(clock: &Clock, streams: u8, dialler: Role) -> Rig {
    pair_with(clock, streams, dialler, Settings { io: ring_or_epoll(), ..Settings::default() })
}

fn ring_or_epoll() -> Io {
    match probe_uring() {
        Ok(()) => Io::Uring,
        Err(missing) => {
            eprintln!("skipped over io_uring: {}: {missing}", std::thread::current().name().unwrap_or_default());
            Io::Epoll
        }
    }
}

fn pair_with(clock: &Clock, streams: u8, dialler: Role, settings: Settings) -> Rig {
    pair_of_threads(clock, streams, dialler, settings, (1, 1))
}

/// Four streams over this many threads at the reader and at the holder.
fn spread(clock: &Clock, dialler: Role, threads: (usize, usize)) -> Rig {
    pair_of_threads(clock, 4, dialler, Settings::default(), threads)
}

fn pair_of_threads(
    clock: &Clock,
    streams: u8,
    dialler: Role,
    settings: Settings,
    (readers, holders): (usize, usize),
) -> Rig {
    let settings = Settings { works_max: WORKS_MAX, ..settings };
    let bind = |count| {
        let clock = clock.clone();
        let threads = Threads { count, clock: Arc::new(move || clock.now()) };
        TcpTransport::bind_threads(([127, 0, 0, 1], 0).into(), &settings, &threads).expect("bind to loopback")
    };
    let (mut reader, mut holder) = (bind(readers), bind(holders));
    let endpoint = EndpointId(7);
    let keys: Vec<_> = (0..streams).map(|stream| [stream + 1; 32]).collect();
    let (dials, admits, admitter) = match dialler {
        Role::Reads => (&mut reader, &mut holder, Role::Serves),
        Role::Serves => (&mut holder, &mut reader, Role::Reads),
    };
    let address = admits.local_addr().expect("ask for the address");
    let admission = Admission { endpoint, role: admitter, keys: keys.clone(), expires: Time::NEVER };
    admits.admit(clock.now(), admission).expect("admit");
    let dial = Dial { endpoint, role: dialler, address, keys, deadline: Time::NEVER };
    dials.connect(clock.now(), dial).expect("connect");
    Rig::pair(clock, endpoint, Box::new(reader), Box::new(holder), WORKS_MAX)
}

fn one(clock: &Clock) -> Rig {
    pair(clock, 1, Role::Reads)
}

fn four(clock: &Clock) -> Rig {
    pair(clock, 4, Role::Reads)
}

/// Who serves dials, and is fetched from.
fn dialled_by_the_holder(clock: &Clock) -> Rig {
    pair(clock, 2, Role::Serves)
}

fn push(clock: &Clock) -> Rig {
    pair(clock, 1, Role::Serves).pushing()
}

fn push_over_four(clock: &Clock) -> Rig {
    pair(clock, 4, Role::Serves).pushing()
}

fn ring(clock: &Clock) -> Rig {
    pair_on_a_ring(clock, 1, Role::Reads)
}

fn ring_over_four(clock: &Clock) -> Rig {
    pair_on_a_ring(clock, 4, Role::Reads)
}

fn ring_dialled_by_the_holder(clock: &Clock) -> Rig {
    pair_on_a_ring(clock, 2, Role::Serves)
}

fn push_on_a_ring(clock: &Clock) -> Rig {
    pair_on_a_ring(clock, 1, Role::Serves).pushing()
}

fn push_over_four_on_a_ring(clock: &Clock) -> Rig {
    pair_on_a_ring(clock, 4, Role::Serves).pushing()
}

fn tls(clock: &Clock) -> Rig {
    pair_under_tls(clock, 1, Role::Reads)
}

fn tls_over_four(clock: &Clock) -> Rig {
    pair_under_tls(clock, 4, Role::Reads)
}

fn tls_dialled_by_the_holder(clock: &Clock) -> Rig {
    pair_under_tls(clock, 2, Role::Serves)
}

fn tls_push(clock: &Clock) -> Rig {
    pair_under_tls(clock, 1, Role::Serves).pushing()
}

fn tls_push_over_four(clock: &Clock) -> Rig {
    pair_under_tls(clock, 4, Role::Serves).pushing()
}

fn two_threads(clock: &Clock) -> Rig {
    spread(clock, Role::Reads, (2, 2))
}

fn two_threads_dialled_by_the_holder(clock: &Clock) -> Rig {
    spread(clock, Role::Serves, (2, 2))
}

fn push_over_two_threads(clock: &Clock) -> Rig {
    spread(clock, Role::Serves, (2, 2)).pushing()
}

fn three_threads_read_from_one(clock: &Clock) -> Rig {
    spread(clock, Role::Reads, (3, 1))
}

fn one_thread_reads_from_four(clock: &Clock) -> Rig {
    spread(clock, Role::Reads, (1, 4))
}

fn push_from_one_thread_to_two(clock: &Clock) -> Rig {
    spread(clock, Role::Serves, (2, 1)).pushing()
}

fn push_from_two_threads_to_one(clock: &Clock) -> Rig {
    spread(clock, Role::Serves, (1, 2)).pushing()
}

/// One stream: the second thread has nothing to do.
fn one_stream_with_two_threads(clock: &Clock) -> Rig {
    pair_of_threads(clock, 1, Role::Reads, Settings::default(), (2, 2))
}

fn two_threads_under_tls(clock: &Clock) -> Rig {
    let settings = Settings { tls: Some(Arc::clone(&TLS)), ..Settings::default() };
    pair_of_threads(clock, 2, Role::Reads, settings, (2, 2))
}

fn push_over_two_threads_on_rings(clock: &Clock) -> Rig {
    let settings = Settings { io: ring_or_epoll(), ..Settings::default() };
    pair_of_threads(clock, 2, Role::Serves, settings, (2, 2)).pushing()
}

kvferry_transport::conformance!(one_stream, one);
kvferry_transport::conformance!(four_streams, four);
kvferry_transport::conformance!(holder_dials, dialled_by_the_holder);
kvferry_transport::conformance!(pushed, push);
kvferry_transport::conformance!(pushed_over_four_streams, push_over_four);

kvferry_transport::conformance!(one_stream_under_tls, tls);
kvferry_transport::conformance!(four_streams_under_tls, tls_over_four);
kvferry_transport::conformance!(holder_dials_under_tls, tls_dialled_by_the_holder);
kvferry_transport::conformance!(pushed_under_tls, tls_push);
kvferry_transport::conformance!(pushed_over_four_streams_under_tls, tls_push_over_four);
kvferry_transport::conformance!(uring_one_stream, ring);
kvferry_transport::conformance!(uring_four_streams, ring_over_four);
kvferry_transport::conformance!(uring_dialled_by_the_holder, ring_dialled_by_the_holder);
kvferry_transport::conformance!(uring_pushed, push_on_a_ring);
kvferry_transport::conformance!(uring_pushed_over_four_streams, push_over_four_on_a_ring);
kvferry_transport::conformance!(over_two_threads, two_threads);
kvferry_transport::conformance!(over_two_threads_dialled_by_the_holder, two_threads_dialled_by_the_holder);
kvferry_transport::conformance!(pushed_over_two_threads, push_over_two_threads);
kvferry_transport::conformance!(over_three_threads_from_one, three_threads_read_from_one);
kvferry_transport::conformance!(over_one_thread_from_four, one_thread_reads_from_four);
kvferry_transport::conformance!(pushed_from_one_thread_to_two, push_from_one_thread_to_two);
kvferry_transport::conformance!(pushed_from_two_threads_to_one, push_from_two_threads_to_one);
kvferry_transport::conformance!(one_stream_for_two_threads, one_stream_with_two_threads);
kvferry_transport::conformance!(over_two_threads_under_tls, two_threads_under_tls);
kvferry_transport::conformance!(uring_pushed_over_two_threads, push_over_two_threads_on_rings);

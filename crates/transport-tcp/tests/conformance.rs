//! The suite every transport passes, over loopback.

use kvferry_core::Time;
use kvferry_transport::conformance::{Clock, Rig};
use kvferry_transport::{Admission, Dial, EndpointId, Role, Transport};
use kvferry_transport_tcp::{Settings, TcpTransport};

const WORKS_MAX: usize = 64;

fn pair(clock: &Clock, streams: u8, dialler: Role) -> Rig {
    let settings = Settings { works_max: WORKS_MAX, ..Settings::default() };
    let bind = || TcpTransport::bind(([127, 0, 0, 1], 0).into(), &settings).expect("bind to loopback");
    let (mut reader, mut holder) = (bind(), bind());
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

kvferry_transport::conformance!(one_stream, one);
kvferry_transport::conformance!(four_streams, four);
kvferry_transport::conformance!(holder_dials, dialled_by_the_holder);
kvferry_transport::conformance!(pushed, push);
kvferry_transport::conformance!(pushed_over_four_streams, push_over_four);

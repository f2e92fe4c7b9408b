//! The suite every transport passes, over loopback.

use kvferry_core::Time;
use kvferry_transport::conformance::{Clock, Rig};
use kvferry_transport::{Admission, Dial, EndpointId, Transport};
use kvferry_transport_tcp::{Settings, TcpTransport};

const WORKS_MAX: usize = 64;

fn rig(clock: &Clock, streams: u8) -> Rig {
    let settings = Settings { works_max: WORKS_MAX, ..Settings::default() };
    let bind = || TcpTransport::bind(([127, 0, 0, 1], 0).into(), &settings).expect("bind to loopback");
    let (mut reader, mut holder) = (bind(), bind());
    let endpoint = EndpointId(7);
    let keys: Vec<_> = (0..streams).map(|stream| [stream + 1; 32]).collect();
    let address = holder.local_addr().expect("ask for the address");
    holder.admit(clock.now(), Admission { endpoint, keys: keys.clone(), expires: Time::NEVER }).expect("admit");
    reader.connect(clock.now(), Dial { endpoint, address, keys, deadline: Time::NEVER }).expect("connect");
    Rig::pair(clock, endpoint, Box::new(reader), Box::new(holder), WORKS_MAX)
}

fn one(clock: &Clock) -> Rig {
    rig(clock, 1)
}

fn four(clock: &Clock) -> Rig {
    rig(clock, 4)
}

kvferry_transport::conformance!(one_stream, one);
kvferry_transport::conformance!(four_streams, four);

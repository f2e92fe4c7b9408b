//! The transport under test, with its endpoint up.

use std::time::{Duration, Instant};

use super::Clock;
use crate::{EndpointId, Event, Transport};

/// How long a property waits for anything unless the rig says otherwise: a loaded test machine is slow, a bug is forever.
const PATIENCE: Duration = Duration::from_secs(20);

/// One end.
pub struct Seat {
    /// The transport of this end.
    pub transport: Box<dyn Transport>,
    /// Its endpoint; up.
    pub endpoint: EndpointId,
}

/// Both ends of one endpoint; or one, for a transport that reads regions of its own node.
pub struct Rig {
    /// Where reads are posted.
    pub reader: Seat,
    /// Where serves are posted. `None`: reads name the source region themselves.
    pub holder: Option<Seat>,
    /// The holder pushes, instead of being fetched from.
    pub pushes: bool,
    /// Works that the reader's endpoint takes at once.
    pub works_max: usize,
    /// How long a property waits before it calls a wait failed.
    pub patience: Duration,
}

impl Rig {
    /// A transport that reads regions of its own node.
    #[must_use]
    pub fn alone(transport: Box<dyn Transport>, endpoint: EndpointId, works_max: usize) -> Self {
        Self { reader: Seat { transport, endpoint }, holder: None, pushes: false, works_max, patience: PATIENCE }
    }

    /// Two transports that have been told to connect and to admit; drives both until the endpoint is up at both ends.
    ///
    /// # Panics
    ///
    /// If it does not come up.
    #[must_use]
    pub fn pair(
        clock: &Clock,
        endpoint: EndpointId,
        mut reader: Box<dyn Transport>,
        mut holder: Box<dyn Transport>,
        works_max: usize,
    ) -> Self {
        let end = Instant::now() + PATIENCE;
        let mut events = Vec::new();
        let (mut reader_up, mut holder_up) = (false, false);
        while !(reader_up && holder_up) {
            assert!(Instant::now() < end, "endpoint up at the reader: {reader_up}, at the holder: {holder_up}");
            let mut busy = false;
            for (transport, up) in [(&mut reader, &mut reader_up), (&mut holder, &mut holder_up)] {
                busy |= transport.turn(clock.now(), &mut events);
                for event in events.drain(..) {
                    assert_eq!(event, Event::EndpointUp(endpoint), "{} while connecting", transport.name());
                    *up = true;
                }
            }
            if !busy {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let holder = Some(Seat { transport: holder, endpoint });
        Self { reader: Seat { transport: reader, endpoint }, holder, pushes: false, works_max, patience: PATIENCE }
    }

    /// The same pair, with every transfer pushed.
    #[must_use]
    pub fn pushing(self) -> Self {
        Self { pushes: true, ..self }
    }
}

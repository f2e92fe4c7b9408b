//! The end of a property: nothing may be left over.

use std::sync::Arc;
use std::time::Duration;

use super::{End, Stage, Transfer, Violation};

/// How long a rig is watched after its last completion for writes and events that come too late.
const AFTERMATH: Duration = Duration::from_millis(20);
/// Turns after which a rig with nothing in flight must have come to rest.
const IDLE_TURNS_MAX: u32 = 10_000;

impl Stage {
    /// Drives until all that was posted has completed, watches the aftermath, and takes the rig apart.
    pub(in crate::conformance) fn finish(mut self) -> Result<(), Violation> {
        self.until("the completion of everything posted", |stage| stage.all_completed())?;
        self.linger(AFTERMATH)?;
        self.come_to_rest()?;
        for end in [End::Holder, End::Reader] {
            if (end == End::Holder && !self.is_pair()) || self.is_down(end) {
                continue;
            }
            let seat = self.seat(end);
            let name = seat.endpoint;
            let in_flight = seat.transport.endpoint(name).ok_or(Violation::EndpointLost(name))?.in_flight();
            if in_flight > 0 {
                return Err(Violation::InFlightMiscounted(in_flight));
            }
        }
        let late = |transfer: &&Transfer| transfer.settled.is_some_and(|settled| settled != transfer.target_sum());
        if let Some(transfer) = self.transfers.iter().find(late) {
            return Err(Violation::TouchedLate(transfer.read));
        }
        for transfer in std::mem::take(&mut self.transfers) {
            let source_end = if self.is_pair() { End::Holder } else { End::Reader };
            self.seat(source_end).transport.deregister(&transfer.source);
            self.seat(End::Reader).transport.deregister(&transfer.target);
            check_owners(&transfer)?;
        }
        self.take_apart()
    }

    fn come_to_rest(&mut self) -> Result<(), Violation> {
        for _ in 0..IDLE_TURNS_MAX {
            if !self.step()? {
                return Ok(());
            }
        }
        Err(Violation::NeverIdle)
    }

    /// Drops both transports, whatever they are doing; nothing may be held or mapped afterwards.
    pub(in crate::conformance) fn take_apart(self) -> Result<(), Violation> {
        let Self { rig, meter, transfers, .. } = self;
        drop(rig);
        for transfer in transfers {
            check_owners(&transfer)?;
        }
        match meter.bytes() {
            0 => Ok(()),
            bytes => Err(Violation::Mapped(bytes)),
        }
    }
}

/// Whether the suite is the last owner of both regions.
fn check_owners(transfer: &Transfer) -> Result<(), Violation> {
    match Arc::strong_count(&transfer.source).max(Arc::strong_count(&transfer.target)) - 1 {
        0 => Ok(()),
        extra => Err(Violation::RegionHeld { id: transfer.read, extra }),
    }
}

//! How works and endpoints part from memory that the kernel still has.
//!
//! ```text
//! work failed -> operations in flight that name memory: recalled -> all completed -> its completion is reported
//! endpoint over -> everything in flight: recalled -> all completed -> completions, EndpointDown
//! ```
//!
//! A work that succeeded has nothing in flight: all its bytes were accounted for by completions. Operations of other
//! works that are recalled on the way move what they have moved and are posted again.

use kvferry_transport::Completion;

use super::{Operation, Ring};

/// Completions that wait for the kernel.
#[derive(Default)]
pub(crate) struct Parting {
    parked: Vec<(Completion, Vec<Operation>)>,
}

impl Parting {
    /// Completions that have not been reported.
    pub(crate) fn len(&self) -> usize {
        self.parked.len()
    }

    /// Takes from `done` what may not be reported yet, and puts back what now may.
    pub(crate) fn hold(&mut self, ring: &mut Ring, lanes: impl Iterator<Item = usize>, done: &mut Vec<Completion>) {
        if done.iter().any(|completion| completion.result.is_err()) {
            let lent: Vec<Operation> = lanes.filter_map(|lane| ring.lent(lane)).collect();
            if !lent.is_empty() {
                let failed = done.extract_if(.., |completion| completion.result.is_err());
                self.parked.extend(failed.map(|completion| (completion, lent.clone())));
            }
        }
        let returned = self.parked.extract_if(.., |(_, operations)| {
            operations.retain(|&operation| ring.is_posted(operation));
            operations.is_empty()
        });
        done.extend(returned.map(|(completion, _)| completion));
        for (_, operations) in &self.parked {
            for &operation in operations {
                // Without room it is tried again in the next turn.
                ring.recall(operation);
            }
        }
    }

    /// The endpoint is over: everything that is held, once nothing is in flight on any of its lanes.
    pub(crate) fn release(&mut self, ring: &mut Ring, lanes: &[usize], done: &mut Vec<Completion>) -> bool {
        let mut is_quiet = true;
        for operation in lanes.iter().filter_map(|&lane| ring.operation(lane)).collect::<Vec<_>>() {
            ring.recall(operation);
            is_quiet = false;
        }
        if is_quiet {
            for &lane in lanes {
                ring.remove_lane(lane);
            }
            done.extend(self.parked.drain(..).map(|(completion, _)| completion));
        }
        is_quiet
    }
}

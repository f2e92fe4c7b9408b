//! The scheduling class of the daemon's threads.
//!
//! ```text
//! limits.realtime_priority -> Scheduling::take, on the control thread, before there is another
//!     -> inherited: data threads, copy threads, the kernel's workers of io_uring
//!     -> one below, `one_below`: the tiers' threads, for transfers between engines go first (docs/adr/0024)
//!     -> given back by `stand_back`: threads of tokio's blocking pool (files, host names)
//! ```
//!
//! An engine that waits for bytes polls with `sched_yield` and keeps its core busy; a normal thread then waits for a core
//! for longer than it needs for the bytes. A thread of the class `SCHED_RR` has one at once (docs/adr/0018).
//!
//! Limits: the kernel leaves normal threads 5 % of each core (`sched_rt_runtime_us`, the fair server); an idle daemon
//! sleeps, and nothing in here spins, which [`crate::config`] sees to.
//! Failure: refused by default, the daemon runs as it is and says so once; refused against the config, it does not start.
//!
//! Why not `SCHED_RESET_ON_FORK`: the threads that move bytes are children, too, and would each have to ask.
//! Why not a class for each thread by itself: an order waits at the slowest of them, measured in docs/adr/0018.

use std::{fmt, io};

use anyhow::{Context as _, Result, bail};
use rustix::process::{getpriority_process, setpriority_process};
use serde::{Deserialize, Serialize};
use thread_priority::{
    Error, NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue,
    ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

use crate::config::Realtime;

/// How to be allowed, for people.
const GRANT: &str = "grant CAP_SYS_NICE or a limit RLIMIT_RTPRIO (systemd: AmbientCapabilities=CAP_SYS_NICE or LimitRTPRIO=, Kubernetes: securityContext.capabilities.add SYS_NICE), outside control groups without a real-time share";

/// Niceness 0, as the library counts.
const MIDDLE: u8 = 47;

/// What the threads that engines wait for run as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scheduling {
    /// Of `SCHED_RR`; 0: as the daemon was started.
    pub(crate) realtime_priority: u8,
    /// What the kernel said to more; empty if it was not asked or agreed.
    pub(crate) refused: String,
}

impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.realtime_priority, self.refused.as_str()) {
            (0, "") => f.write_str("scheduled as started"),
            (0, refused) => write!(f, "scheduled as started: SCHED_RR was refused, {refused}"),
            (priority, _) => write!(f, "SCHED_RR {priority}"),
        }
    }
}

impl Scheduling {
    /// Asks for the calling thread, and with it for all that it starts.
    pub(crate) fn take(wanted: Realtime) -> Result<Self> {
        let (mut priority, must) = match wanted {
            Realtime::Never => return Ok(Self::default()),
            Realtime::IfAllowed(priority) => (priority, false),
            Realtime::Wanted(priority) => (priority, true),
        };
        // Who has been granted less than the default still has the class.
        let lowest = if must { priority } else { 1 };
        let mut taken = become_realtime(priority);
        while taken.is_err() && priority > lowest {
            priority -= 1;
            taken = become_realtime(priority);
        }
        match taken {
            Ok(()) => {
                tracing::info!(priority, "threads that engines wait for run in the real-time class SCHED_RR");
                Ok(Self { realtime_priority: priority, refused: String::new() })
            }
            Err(refused) if must => {
                bail!(
                    "limits.realtime_priority = {priority}: the kernel refuses SCHED_RR ({refused}). Either {GRANT}; or set it to 0"
                )
            }
            Err(refused) => {
                tracing::warn!(
                    "the kernel refuses SCHED_RR ({refused}): transfers wait for a core where engines keep all busy. Either {GRANT}; or set limits.realtime_priority = 0"
                );
                Ok(Self { realtime_priority: 0, refused: refused.to_string() })
            }
        }
    }

    /// Starts threads that are to come behind those for transfers between engines: a priority lower, and in the normal class
    /// where there is none. They inherit it from the calling thread, which is what it was when this returns.
    pub(crate) fn one_below<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.realtime_priority {
            0 => return start(),
            1 => self.stand_back(),
            priority => become_realtime(priority - 1).context("lower the real-time priority")?,
        }
        let started = start();
        become_realtime(self.realtime_priority).context("take the real-time priority again")?;
        started
    }

    /// For threads that no engine waits for: back to the normal class, at the niceness that they have.
    pub(crate) fn stand_back(&self) {
        if self.realtime_priority == 0 {
            return;
        }
        let nice = getpriority_process(None);
        let normal = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);
        // Always allowed. The call sets a niceness too, 0, and that may be refused: what counts is the class.
        if let Ok(middle) = ThreadPriority::try_from(MIDDLE) {
            let _ = set_thread_priority_and_policy(thread_native_id(), middle, normal);
        }
        let _ = nice.and_then(|nice| setpriority_process(None, nice));
    }
}

fn become_realtime(priority: u8) -> io::Result<()> {
    let priority = ThreadPriorityValue::try_from(priority).map_err(io::Error::other)?;
    let class = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(priority), class).map_err(
        |error| match error {
            Error::OS(number) => io::Error::from_raw_os_error(number),
            other => io::Error::other(format!("{other:?}")),
        },
    )
}

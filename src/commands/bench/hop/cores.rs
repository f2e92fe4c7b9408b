//! Which cores the two sides run on: where the scheduler puts them, or each on one of its own.
//!
//! Left alone, a scheduler that finds the waking core about to be free puts the woken thread there: the wake-up is then
//! cheap, and no core was asleep. Kept apart, a side that sleeps has its core halted, and to wake it is what it costs
//! between an engine and a daemon on a node with cores to spare.

use std::collections::BTreeSet;
use std::fs::DirEntry;

use anyhow::{Context as _, Result, bail};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where each side belongs; nobody is moved if there are none.
#[derive(Clone, Copy)]
pub(super) struct Cores(Option<[CpuSet; 2]>);

impl Cores {
    /// Wherever the scheduler likes.
    pub(super) const ANY: Self = Self(None);

    /// Keeps the calling thread, and those that it starts, on the first core that this process may use; the other side
    /// is to have the second.
    pub(super) fn apart() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("ask for the cores of this process")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        let (Some(near), Some(far)) = (cores.next(), cores.next()) else {
            bail!("--pin needs two cores, and this process may use one only");
        };
        let [near, far] = [near, far].map(|core| {
            let mut set = CpuSet::new();
            set.set(core);
            set
        });
        sched_setaffinity(None, &near).context("keep this process on one core")?;
        Ok(Self(Some([near, far])))
    }

    /// Moves the calling thread to the other side. A core that went meanwhile is no reason to end.
    pub(super) fn move_over(self) {
        if let Some([_, far]) = self.0 {
            let _ = sched_setaffinity(None, &far);
        }
    }

    /// Moves all threads of a process to the other side; those that they start follow them.
    pub(super) fn move_process(self, process: u32) -> Result<()> {
        let Some([_, far]) = self.0 else { return Ok(()) };
        for thread in threads(process)? {
            sched_setaffinity(Some(thread), &far).context("keep the daemon on one core")?;
        }
        Ok(())
    }
}

/// The cores that any thread of a process may use, as the kernel says.
pub(super) fn of(process: u32) -> Result<BTreeSet<usize>> {
    let mut cores = BTreeSet::new();
    for thread in threads(process)? {
        let allowed = sched_getaffinity(Some(thread)).context("ask for a thread's cores")?;
        cores.extend((0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)));
    }
    Ok(cores)
}

fn threads(process: u32) -> Result<Vec<Pid>> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).context("list a process's threads")?;
    let thread = |task: std::io::Result<DirEntry>| {
        let name = task?.file_name();
        let thread = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        thread.context("read the name of a thread")
    };
    tasks.map(thread).collect()
}

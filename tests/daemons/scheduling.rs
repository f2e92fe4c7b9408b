//! Which of the daemon's threads are real-time, and what it says where the kernel refuses.

use std::process::Command;

use crate::support::{Daemon, DaemonOptions, wait};

/// As the kernel counts the classes.
const NORMAL: u64 = 0;
const ROUND_ROBIN: u64 = 2;

/// One line of `/proc/PID/task`.
#[derive(Debug, PartialEq, Eq)]
struct Thread {
    name: String,
    /// The first thread: control.
    is_control: bool,
    class: u64,
    priority: u64,
    nice: i64,
}

impl Thread {
    fn is_real_time(&self, priority: u64) -> bool {
        self.class == ROUND_ROBIN && self.priority == priority
    }

    fn is_normal(&self) -> bool {
        self.class == NORMAL && self.priority == 0
    }
}

fn threads(daemon: &Daemon) -> Vec<Thread> {
    let tasks = std::fs::read_dir(daemon.proc("task")).expect("read the tasks");
    let first = daemon.proc("").file_name().expect("its number").to_owned();
    let thread = |task: std::io::Result<std::fs::DirEntry>| {
        let task = task.expect("a task");
        // A thread may end between the two.
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, fields) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).expect("a name");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |index: usize| fields[index].parse::<u64>().expect("a number");
        // Numbered from the state, which proc(5) counts as field 3.
        Some(Thread {
            name: name.to_owned(),
            is_control: task.file_name() == first,
            class: number(41 - 3),
            priority: number(40 - 3),
            nice: fields[19 - 3].parse().expect("a niceness"),
        })
    };
    tasks.filter_map(thread).collect()
}

/// Whether this machine lets these tests have real-time threads; what is skipped is named.
fn may_be_real_time(skipped: &str) -> bool {
    let ran = Command::new("chrt").args(["--rr", "9", "true"]).output();
    let may = ran.as_ref().is_ok_and(|ran| ran.status.success());
    if !may {
        println!("SKIPPED, {skipped}: no `chrt --rr` here: {ran:?}");
    }
    may
}

/// Words that run a program with `rtprio` as its `RLIMIT_RTPRIO`, and without `CAP_SYS_NICE`.
fn without_the_capability(rtprio: u32, skipped: &str) -> Option<Vec<String>> {
    let words = if rustix::process::geteuid().is_root() {
        format!("setpriv --bounding-set -sys_nice prlimit --rtprio={rtprio}")
    } else {
        format!("prlimit --rtprio={rtprio}")
    };
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let ran = Command::new(&words[0]).args(&words[1..]).arg("true").output();
    if ran.as_ref().is_ok_and(|ran| ran.status.success()) {
        return Some(words);
    }
    println!("SKIPPED, {skipped}: {words:?} does not work here: {ran:?}");
    None
}

fn limited(limits: &str) -> DaemonOptions {
    DaemonOptions { limits: format!("copy_threads = 2\ndata_threads = 2\n{limits}"), ..Default::default() }
}

/// The threads that engines wait for. A thread has its own name from its first moment on a core.
fn serving(daemon: &Daemon) -> Vec<Thread> {
    let all = || threads(daemon);
    wait(
        || format!("control, two data threads and one copy thread: {:?}", all()),
        || {
            let mut serving = all();
            // The kernel's workers of an io_uring come and go.
            serving.retain(|thread| thread.name != "kvferry-files" && !thread.name.starts_with("iou-"));
            let named = |name: &str| serving.iter().filter(|thread| thread.name == name).count() == 1;
            let complete =
                ["kvferry-data", "kvferry-data-1", "kvferry-copy-1"].into_iter().all(named) && serving.len() == 4;
            (complete && serving.iter().any(|thread| thread.is_control)).then_some(serving)
        },
    )
}

#[test]
fn threads_that_engines_wait_for_are_real_time() {
    if !may_be_real_time("threads that engines wait for are real-time") {
        return;
    }
    for (limits, priority) in [("", 2), ("realtime_priority = 7", 7)] {
        let daemon = Daemon::start_with(&limited(limits));
        let serving = serving(&daemon);
        assert!(serving.iter().all(|thread| thread.is_real_time(priority)), "{limits:?}: {serving:?}");
        assert_eq!(daemon.status()["scheduling"]["realtime_priority"], priority);
        assert_eq!(daemon.status()["scheduling"]["refused"], "");
    }
}

#[test]
fn threads_of_the_tiers_come_behind_those_of_transfers() {
    if !may_be_real_time("threads of the tiers come behind those of transfers") {
        return;
    }
    for (limits, below) in [("", Some(1)), ("realtime_priority = 7", Some(6)), ("realtime_priority = 1", None)] {
        let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on a disk");
        let tables = format!(
            "[tier.host]\nmib = 64\ncopy_threads = 1\npath = {:?}\n[tier.disk]\nmib = 64\npath = {:?}\n",
            memory.path().join("arena"),
            disk.path().join("store")
        );
        let daemon = Daemon::start_with(&DaemonOptions { tables, ..limited(limits) });
        let found = || {
            let of_tiers = ["kvferry-tier", "kvferry-load-0", "kvferry-disk", "kvferry-store"];
            threads(&daemon).into_iter().filter(|thread| of_tiers.contains(&&*thread.name)).collect::<Vec<_>>()
        };
        let is_right = |thread: &Thread| match below {
            Some(priority) if thread.name != "kvferry-store" => thread.is_real_time(priority),
            _ => thread.is_normal(),
        };
        // The one that stores gives its class back when it begins.
        wait(
            || format!("{below:?} for {limits:?}: {:?}", found()),
            || (found().len() == 4 && found().iter().all(is_right)).then_some(()),
        );
        let priority = below.map_or(1, |below| below + 1);
        let control = threads(&daemon).into_iter().find(|thread| thread.is_control).expect("its first thread");
        assert!(control.is_real_time(priority), "as it was before it started them: {control:?}");
        assert_eq!(daemon.status()["scheduling"]["realtime_priority"], priority);
    }
}

#[test]
fn who_is_granted_less_than_the_default_has_that() {
    if !may_be_real_time("who is granted less than the default has that") {
        return;
    }
    let Some(within) = without_the_capability(1, "who is granted less than the default has that") else { return };
    let daemon = Daemon::start_with(&DaemonOptions { within, ..limited("") });
    let serving = serving(&daemon);
    assert!(serving.iter().all(|thread| thread.is_real_time(1)), "{serving:?}");
    assert_eq!(daemon.log_count("refuses SCHED_RR"), 0);
}

#[test]
fn threads_for_names_and_files_are_not() {
    if !may_be_real_time("threads for names and files are not real-time") {
        return;
    }
    // A name to look up, again and again, and a niceness to keep.
    let mut options = limited("");
    options.peer = "known = [\"localhost:9\"]".to_owned();
    options.within = ["nice", "-n", "5"].map(str::to_owned).to_vec();
    let daemon = Daemon::start_with(&options);
    let all = || threads(&daemon);
    wait(
        || format!("a normal thread for files and names: {:?}", all()),
        || all().into_iter().find(|thread| thread.name == "kvferry-files" && thread.is_normal() && thread.nice == 5),
    );
    let serving = serving(&daemon);
    assert!(serving.iter().all(|thread| thread.is_real_time(2)), "{serving:?}");
}

#[test]
fn none_is_real_time_that_was_told_not_to_be_or_spins() {
    for limits in ["realtime_priority = 0", "spin_us = 20"] {
        let daemon = Daemon::start_with(&limited(limits));
        let serving = serving(&daemon);
        assert!(serving.iter().all(Thread::is_normal), "{limits:?}: {serving:?}");
        assert_eq!(daemon.status()["scheduling"]["realtime_priority"], 0);
    }
}

#[test]
fn a_refusal_is_told_once_and_costs_nothing_else() {
    let Some(within) = without_the_capability(0, "a refusal is told once") else { return };
    let daemon = Daemon::start_with(&DaemonOptions { within, ..limited("") });
    let serving = serving(&daemon);
    assert!(serving.iter().all(Thread::is_normal), "{serving:?}");
    let line = daemon.wait_log("refuses SCHED_RR");
    for word in [" WARN ", "CAP_SYS_NICE", "RLIMIT_RTPRIO", "limits.realtime_priority = 0"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert_eq!(daemon.log_count("refuses SCHED_RR"), 1);
    let status = daemon.status();
    assert_eq!(status["scheduling"]["realtime_priority"], 0);
    assert!(status["scheduling"]["refused"].as_str().is_some_and(|said| said.contains("not permitted")), "{status}");
}

#[test]
fn a_limit_of_the_process_is_enough() {
    if !may_be_real_time("a limit of the process is enough") {
        return;
    }
    let Some(within) = without_the_capability(5, "a limit of the process is enough") else { return };
    let daemon = Daemon::start_with(&DaemonOptions { within, ..limited("realtime_priority = 5") });
    let serving = serving(&daemon);
    assert!(serving.iter().all(|thread| thread.is_real_time(5)), "{serving:?}");
}

#[test]
fn asked_for_and_refused_is_no_start() {
    let Some(within) = without_the_capability(0, "asked for and refused is no start") else { return };
    let directory = tempfile::tempdir().expect("create a directory");
    let file = directory.path().join("kvferry.toml");
    let config = format!(
        "[attach]\ndirectory = {:?}\n[peer]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[limits]\nrealtime_priority = 1\n",
        directory.path()
    );
    std::fs::write(&file, config).expect("write the config");
    // Should it start after all, it is ended.
    let ended = Command::new("timeout")
        .arg("20")
        .args(&within)
        .args([env!("CARGO_BIN_EXE_kvferry"), "serve", "--config"])
        .arg(&file)
        .output()
        .expect("run the daemon");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    for word in ["limits.realtime_priority = 1", "not permitted", "CAP_SYS_NICE", "RLIMIT_RTPRIO"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}

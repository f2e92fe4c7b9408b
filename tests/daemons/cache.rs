//! `kvferry cache ls`, `evict` and `verify` of a real daemon, as people run them.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use kvferry_client::{BlockHash, Client, Sweep, SweepSpec};
use kvferry_proto::v1::{self, from_daemon, to_daemon};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::engine::EngineOptions;
use crate::support::impostor::{Conversation, Impostor};
use crate::support::{Daemon, DaemonOptions, Shape, StandInEngine, wait};

/// A daemon with host memory and a disk.
struct Node {
    memory: tempfile::TempDir,
    disk: tempfile::TempDir,
    daemon: Daemon,
}

impl Node {
    fn start() -> Self {
        Self::start_with("")
    }

    fn start_with(attach: &str) -> Self {
        let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on a disk");
        let tables = format!(
            "[tier.host]\nmib = 64\nblock_mib_max = 2\npath = {:?}\n[tier.disk]\nmib = 64\nfile_mib = 8\npath = {:?}\n",
            memory.path().join("arena"),
            disk.path().join("store")
        );
        let options = DaemonOptions { tables, attach: attach.to_owned(), ..Default::default() };
        Self { memory, disk, daemon: Daemon::start_with(&options) }
    }

    fn engine(&self, name: &str, options: EngineOptions) -> StandInEngine {
        let engine = StandInEngine::attach_with(&self.daemon, name, options);
        engine.fill(options.fingerprint[0]);
        engine
    }

    fn command(&self, words: &[&str]) -> Command {
        command(&self.daemon.socket(), words)
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("run the command")
    }

    /// The document of a command that must go well.
    fn json(&self, words: &[&str]) -> Value {
        let output = self.run(&[words, &["--json"]].concat());
        assert!(output.status.success(), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn wait_blocks(&self, host: u64, disk: u64) {
        let is_so = |status: &Value| {
            let tiers = &status["tiers"];
            (tiers["host_blocks"].as_u64(), tiers["disk"]["blocks"].as_u64()) == (Some(host), Some(disk))
        };
        self.daemon.wait_for(&format!("{host} and {disk} blocks"), is_so);
    }

    /// How many blocks have left host memory and the disk for this reason.
    fn left(&self, why: &str) -> (u64, u64) {
        let tiers = &self.daemon.status()["tiers"];
        let count = |of: &Value| of["left_total"][why].as_u64().expect("a count");
        (count(tiers), count(&tiers["disk"]))
    }
}

fn command(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvferry"));
    command.arg("cache").args(words).arg("--socket").arg(socket).stdin(Stdio::null());
    command
}

fn hashes(numbers: std::ops::Range<u8>) -> Vec<BlockHash> {
    numbers.map(|number| [number; 32]).collect()
}

fn of(fingerprint: u8, model: &'static str, tenant: &'static str) -> EngineOptions {
    EngineOptions { shape: Shape::MEDIUM, fingerprint: [fingerprint; 32], model, tenant, ..Default::default() }
}

fn keep(engine: &mut StandInEngine, numbers: std::ops::Range<u8>) {
    let names = hashes(numbers);
    let blocks: Vec<u32> = (0..).take(names.len()).collect();
    let (key, failure) = engine.store(None, &names, &blocks);
    assert_eq!((failure, engine.commit(key)), (None, names.len() as u64));
}

/// Looks blocks up, which sends them to the disk too, and lets go of them.
fn use_again(engine: &StandInEngine, numbers: std::ops::Range<u8>) {
    let (claim, held) = engine.lookup(&hashes(numbers.clone()));
    assert_eq!(held, u32::from(numbers.end - numbers.start));
    engine.scheduler.forget(claim);
}

/// Changes one bit of what looks like this, in a file.
fn flip(file: &Path, wanted: &[u8]) -> bool {
    let bytes = std::fs::read(file).expect("readable");
    let Some(at) = bytes.windows(wanted.len()).position(|bytes| bytes == wanted) else { return false };
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("ours");
    file.write_all_at(&[wanted[77] ^ 32], at as u64 + 77).expect("written");
    // What the page cache has must be on the disk before it is read past it. Memory has no such thing.
    drop(file.sync_all());
    true
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("readable");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()).collect()
}

#[test]
fn it_lists_what_is_stored_by_model_tenant_and_tier() {
    let mut node = Node::start();
    let mut first = node.engine("E0", of(7, "llama", "alice"));
    keep(&mut first, 1..5);
    use_again(&first, 1..3);
    node.wait_blocks(4, 2);
    let mut second = node.engine("E1", of(8, "", ""));
    keep(&mut second, 1..3);
    let list = node.json(&["ls"]);
    let rows = list["rows"].as_array().expect("rows");
    let row = |tier: &str, digits: &str| {
        let is_of = |row: &&Value| row["tier"] == tier && row["fingerprint"].as_str() == Some(&digits.repeat(32));
        rows.iter().find(is_of).unwrap_or_else(|| panic!("{tier} {digits} in {list}")).clone()
    };
    let block = Shape::MEDIUM.block_bytes();
    for (tier, blocks) in [("host", 4), ("disk", 2)] {
        let row = row(tier, "07");
        assert_eq!((row["model"].as_str(), row["attached"].as_bool()), (Some("llama"), Some(true)), "{row}");
        assert_eq!((row["blocks"].as_u64(), row["bytes"].as_u64()), (Some(blocks), Some(blocks * block)), "{row}");
        assert_eq!(row["tenant"].as_str().map(str::len), Some(16), "{row}");
    }
    assert_eq!((row("host", "07")["hits"].as_u64(), row("disk", "07")["hits"].as_u64()), (Some(2), Some(0)));
    assert!(row("host", "07")["used_ms_ago"].is_u64() && row("disk", "07")["used_ms_ago"].is_null());
    let nobody = row("host", "08");
    assert_eq!((nobody["model"].as_str(), nobody["tenant"].as_str()), (Some(""), Some("")), "{nobody}");
    assert_eq!(rows.len(), 3, "{list}");
    let text = String::from_utf8(node.run(&["ls", "--model", "llama", "--tier", "host"]).stdout).expect("text");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() == 3 && lines[1].starts_with("llama  0707070707070707"), "{text}");
    // The next daemon knows whose blocks they are, and not what the model was called.
    drop((first, second));
    node.daemon.restart();
    let list = node.json(&["ls", "--fingerprint", "0707"]);
    let rows = list["rows"].as_array().expect("rows");
    assert_eq!((rows.len(), rows[0]["model"].as_str(), rows[0]["attached"].as_bool()), (2, Some(""), Some(false)));
    assert_eq!((rows[0]["blocks"].as_u64(), rows[0]["used_ms_ago"].is_null()), (Some(4), true), "{list}");
}

#[test]
fn all_who_ask_at_once_are_answered() {
    let node = Node::start();
    let mut engine = node.engine("E0", of(7, "llama", ""));
    keep(&mut engine, 1..3);
    let operators = [(); 8].map(|()| node.daemon.operator());
    // Nobody asks a second time before all have their answers: who waits for the next list is helped by no other question.
    for _ in 0..50 {
        let ask = |operator: &Client| {
            let list: Value =
                serde_json::from_str(&operator.cache_list(&SweepSpec::default()).expect("a list")).expect("JSON");
            assert_eq!(list["rows"][0]["blocks"].as_u64(), Some(2), "{list}");
        };
        std::thread::scope(|scope| operators.iter().for_each(|operator| drop(scope.spawn(move || ask(operator)))));
    }
}

#[test]
fn it_evicts_what_fits_and_nothing_else() {
    let node = Node::start();
    let mut first = node.engine("E0", of(7, "llama", "alice"));
    let mut second = node.engine("E1", of(8, "qwen", ""));
    keep(&mut first, 1..5);
    use_again(&first, 1..3);
    keep(&mut second, 1..4);
    node.wait_blocks(7, 2);
    let dry = node.run(&["evict", "--model", "llama", "--dry-run"]);
    assert!(dry.status.success() && String::from_utf8_lossy(&dry.stdout).contains("6 blocks"), "{dry:?}");
    node.wait_blocks(7, 2);
    let swept = node.json(&["evict", "--model", "llama", "--tier", "disk"]);
    assert_eq!((swept["host"]["blocks"].as_u64(), swept["disk"]["blocks"].as_u64()), (Some(0), Some(2)), "{swept}");
    node.wait_blocks(7, 0);
    let tenant = node.json(&["ls", "--model", "llama"])["rows"][0]["tenant"].as_str().expect("a tenant").to_owned();
    let swept = node.json(&["evict", "--tenant-id", &tenant]);
    let bytes = 4 * Shape::MEDIUM.block_bytes();
    assert_eq!((swept["host"]["blocks"].as_u64(), swept["host"]["bytes"].as_u64()), (Some(4), Some(bytes)), "{swept}");
    assert_eq!(swept["complete"].as_bool(), Some(true));
    let (claim, held) = second.lookup(&hashes(1..4));
    assert_eq!((first.lookup(&hashes(1..5)).1, held), (0, 3));
    let words = node.run(&["evict", "--all", "--yes"]);
    assert!(words.status.success() && String::from_utf8_lossy(&words.stdout).contains("evicted "), "{words:?}");
    assert_eq!(second.lookup(&hashes(1..4)).1, 0, "nobody finds what is to go");
    second.scheduler.forget(claim);
    node.wait_blocks(0, 0);
    keep(&mut first, 1..3);
    assert_eq!(first.lookup(&hashes(1..3)).1, 2, "and begins anew");
}

#[test]
fn blocks_that_are_being_loaded_go_when_they_have_been() {
    let node = Node::start();
    let mut engine = node.engine("E0", of(7, "llama", ""));
    keep(&mut engine, 1..5);
    let (claim, held) = engine.lookup(&hashes(1..5));
    assert_eq!(held, 4);
    node.wait_blocks(4, 4);
    let swept = node.json(&["evict", "--all", "--yes"]);
    assert_eq!(
        (swept["host"]["blocks"].as_u64(), swept["host"]["held_blocks"].as_u64()),
        (Some(0), Some(4)),
        "{swept}"
    );
    assert_eq!((engine.lookup(&hashes(1..5)).1, swept["disk"]["blocks"].as_u64()), (0, Some(4)), "{swept}");
    assert_eq!(engine.load(claim, &hashes(1..5), &[20, 21, 22, 23]), None);
    assert_eq!(engine.block(20), engine.block(0));
    node.wait_blocks(0, 0);
    assert_eq!(node.left("asked"), (4, 4));
}

#[test]
fn an_eviction_says_what_is_to_go_or_does_nothing() {
    let node = Node::start();
    let mut engine = node.engine("E0", of(7, "llama", ""));
    keep(&mut engine, 1..3);
    for (words, said) in [
        (vec!["evict"], "say what is to go"),
        (vec!["evict", "--all"], "add --yes"),
        (vec!["evict", "--all", "--yes", "--tier", "host"], "cannot be used with"),
        (vec!["evict", "--model", "qwen"], "no stored blocks are known to be of model"),
        (vec!["evict", "--fingerprint", "08080808"], "no stored blocks are of this fingerprint"),
    ] {
        let output = node.run(&words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(said), "{words:?}: {text}");
    }
    // Nor does the daemon take it from who is less careful.
    let refused = node.daemon.operator().begin_sweep(Sweep::Evict, &SweepSpec::default());
    assert!(format!("{refused:?}").contains("nothing says what is to go"), "{refused:?}");
    let tier = SweepSpec { tier: Some("tape".to_owned()), ..Default::default() };
    let refused = node.daemon.operator().begin_sweep(Sweep::Evict, &tier);
    assert!(format!("{refused:?}").contains("no tier"), "{refused:?}");
    node.wait_blocks(2, 0);
    // An engine's processes are no operators.
    let refused = engine.scheduler.begin_sweep(Sweep::Evict, &SweepSpec { everything: true, ..Default::default() });
    assert!(format!("{refused:?}").contains("not for this role"), "{refused:?}");
}

#[test]
fn a_changed_bit_is_found_counted_and_a_miss() {
    let node = Node::start();
    let mut engine = node.engine("E0", of(7, "llama", ""));
    keep(&mut engine, 1..9);
    use_again(&engine, 1..9);
    node.wait_blocks(8, 8);
    let swept = node.json(&["verify"]);
    let whole = |swept: &Value, tier: &str| (swept[tier]["blocks"].as_u64(), swept[tier]["damaged_blocks"].as_u64());
    assert_eq!((whole(&swept, "host"), whole(&swept, "disk")), ((Some(8), Some(0)), (Some(8), Some(0))), "{swept}");
    assert_eq!(swept["host"]["bytes"].as_u64(), Some(8 * Shape::MEDIUM.block_bytes()));
    // The last one in host memory, the first one on the disk.
    assert!(flip(&node.memory.path().join("arena"), &engine.block(7)));
    let flipped = files(&node.disk.path().join("store")).iter().filter(|file| flip(file, &engine.block(0))).count();
    assert_eq!(flipped, 1);
    let output = node.run(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let swept: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((whole(&swept, "host"), whole(&swept, "disk")), ((Some(7), Some(1)), (Some(7), Some(1))), "{swept}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 blocks were damaged and are gone"), "{output:?}");
    assert_eq!(node.left("damaged"), (1, 1));
    let metrics = node.daemon.metric("kvferry_tier_left_blocks_total{tier=\"host\",reason=\"damaged\"}");
    assert_eq!(metrics, 1);
    let text = String::from_utf8(node.run(&["stat"]).stdout).expect("text");
    assert_eq!(text.matches("1 left: 1 damaged").count(), 2, "{text}");
    assert!(node.run(&["verify"]).status.success(), "it is gone");
    let evicted = node.json(&["evict", "--tier", "host"]);
    assert_eq!(evicted["host"]["blocks"].as_u64(), Some(7));
    assert_eq!(engine.lookup(&hashes(1..9)).1, 0, "its first block is damaged on the disk, and not found");
}

#[test]
fn one_verifies_at_a_time_and_an_end_is_an_end() {
    let node = Node::start();
    let mut engine = node.engine("E0", of(7, "llama", ""));
    keep(&mut engine, 1..9);
    let first = node.daemon.operator();
    let spec = SweepSpec::default();
    let second = node.daemon.operator();
    wait(
        || "two at once".to_owned(),
        || {
            let begun = first.begin_sweep(Sweep::Verify, &spec);
            let refused = second.begin_sweep(Sweep::Verify, &spec);
            let is_refused = format!("{refused:?}").contains("verifies already");
            assert!(begun.is_ok() || format!("{begun:?}").contains("already") || is_refused, "{begun:?} {refused:?}");
            is_refused.then_some(())
        },
    );
    drop((first, second));
    let next = node.daemon.operator();
    wait(|| "room for the next".to_owned(), || next.begin_sweep(Sweep::Verify, &spec).ok());
    let over = wait(
        || "its end".to_owned(),
        || {
            let status: Value = serde_json::from_str(&next.sweep_status().expect("begun")).expect("JSON");
            (status["complete"] == true).then_some(status)
        },
    );
    assert_eq!(over["host"]["blocks"].as_u64(), Some(8), "{over}");
}

#[test]
fn who_asks_late_is_told_how_it_ended_though_others_have_begun_since() {
    let node = Node::start();
    let mut engine = node.engine("E0", of(7, "llama", ""));
    keep(&mut engine, 1..5);
    node.wait_blocks(4, 0);
    let everything = SweepSpec { everything: true, ..Default::default() };
    for (sweep, blocks) in [(Sweep::Verify, 4), (Sweep::Evict, 4)] {
        let [late, second, third] = [(); 3].map(|()| node.daemon.operator());
        late.begin_sweep(sweep, &everything).expect("nobody else has begun");
        // Each is taken once the one before it is over, whether anybody has asked how that went or not.
        wait(|| format!("{sweep:?}, second"), || second.begin_sweep(sweep, &everything).ok());
        wait(|| format!("{sweep:?}, third"), || third.begin_sweep(sweep, &everything).ok());
        let status: Value = serde_json::from_str(&late.sweep_status().expect("begun")).expect("JSON");
        assert_eq!((status["complete"].as_bool(), status["host"]["blocks"].as_u64()), (Some(true), Some(blocks)));
        // Nor does anybody have to go before the next one begins.
        wait(|| format!("{sweep:?}, late again"), || late.begin_sweep(sweep, &everything).ok());
    }
}

/// A verification that is never over, and what the daemon's end of it.
fn endless_verification() -> (Impostor, Conversation, Child) {
    let daemon = Impostor::listen();
    let mut command = command(&daemon.socket, &["verify"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    let mut conversation = daemon.welcome(1);
    let mut questions = 0;
    while questions < 3 {
        let asked = conversation.read().expect("a question");
        let json = match asked.body {
            Some(to_daemon::Body::Sweep(_) | to_daemon::Body::SweepQuery(_)) => {
                let sum = r#"{"blocks_total": 9, "bytes_total": 9, "blocks": 4, "bytes": 4, "held_blocks": 0,
                    "held_bytes": 0, "damaged_blocks": 0, "unreadable_blocks": 0}"#;
                format!(r#"{{"complete": false, "elapsed_ms": 5, "host": {sum}, "disk": null}}"#)
            }
            other => panic!("{other:?}"),
        };
        questions += 1;
        conversation.answer(asked.id, from_daemon::Body::Sweep(v1::SweepReply { json }));
    }
    (daemon, conversation, child)
}

#[test]
fn ctrl_c_ends_the_session_and_with_it_the_verification() {
    let (_daemon, mut conversation, child) = endless_verification();
    kill_process(Pid::from_child(&child), Signal::INT).expect("interrupted");
    // Whatever it has asked besides: its last word is that the session is over.
    while conversation.read().is_some() {}
    let output = child.wait_with_output().expect("an end");
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(130), "{said}{why}");
    assert!(said.contains("4 blocks are whole") && why.contains("before everything was read"), "{said}{why}");
}

#[test]
fn a_daemon_that_ends_meanwhile_is_said() {
    let (daemon, conversation, child) = endless_verification();
    drop((daemon, conversation));
    let output = child.wait_with_output().expect("an end");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && why.contains("the daemon ended meanwhile"), "{why}");
}

#[test]
fn a_daemon_that_does_not_answer_is_not_said_to_have_ended() {
    // It reads nothing any more, and hangs up on nobody.
    let (_daemon, _conversation, child) = endless_verification();
    let output = child.wait_with_output().expect("an end");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && why.contains("does not say how far it is"), "{why}");
    assert!(why.contains("did not answer within") && !why.contains("ended"), "{why}");
}

#[test]
fn a_daemon_without_a_disk_says_so_to_who_means_one() {
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let tables = format!("[tier.host]\nmib = 64\npath = {:?}\n", memory.path().join("arena"));
    let daemon = Daemon::start_with(&DaemonOptions { tables, ..Default::default() });
    for word in ["verify", "evict"] {
        let output = command(&daemon.socket(), &[word, "--tier", "disk"]).output().expect("run");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("no disk tier"), "{word}: {text}");
        let output = command(&daemon.socket(), &[word, "--tier", "host"]).output().expect("run");
        assert!(output.status.success(), "{word}: {output:?}");
    }
}

#[test]
fn a_daemon_without_tiers_says_so() {
    let bare = Daemon::start();
    for words in [vec!["ls"], vec!["verify"], vec!["evict", "--all", "--yes"]] {
        let output = command(&bare.socket(), &words).output().expect("run");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("tier.host.mib"), "{words:?}: {text}");
    }
}

#[test]
fn who_runs_engines_may_look_and_change_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    const OTHER: u32 = 12_345;
    let node = Node::start_with(&format!("uids = [{OTHER}]"));
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(node.daemon.directory.path(), open).expect("opened");
    let run = |words: &[&str]| node.command(words).uid(OTHER).output();
    // The program itself may be where others cannot go.
    let Ok(list) = run(&["ls"]) else {
        eprintln!("skipped: another user cannot run the program");
        return;
    };
    assert!(list.status.success(), "{list:?}");
    for words in [&["verify"][..], &["evict", "--all", "--yes"]] {
        let output = run(words).expect("run");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("user 12345 may not"), "{words:?}: {text}");
    }
}

//! `kill -9` of a daemon with tiers at any moment, start included, under mixed load from several engines: what it finds in
//! its next life is what was vouched for, with every byte; and it never takes more than it may.
//!
//! ```text
//! engines: store, commit, give up, look up, forget, load, clear -> killed -> started -> every chain looked up and loaded
//! ```
//!
//! `KVFERRY_KILLS=10000 cargo test --test daemons torture -- --nocapture`, or `make torture`, kills more often.

mod caps;
mod driver;
mod ledger;

use std::path::Path;
use std::time::{Duration, Instant};

use self::caps::Caps;
use self::driver::Driver;
use self::ledger::{KINDS, Ledger};
use crate::support::engine::EngineOptions;
use crate::support::{Daemon, DaemonOptions, Dice, Shape, StandInEngine};

/// Of all scenes together, unless the environment says otherwise.
const KILLS: u32 = 300;
const SCENES: u32 = 3;
/// The longest that a daemon is under load.
const LIFE_MAX: Duration = Duration::from_millis(100);
/// The longest that a daemon lives that is killed while it starts: longer than a start takes.
const START_MAX: Duration = Duration::from_millis(60);
const MIB: u64 = 1 << 20;
const TENANTS: usize = 3;

/// Whose blocks a chain's are: half of them the first one's, who runs into its quota.
fn tenant(chain: usize) -> String {
    format!("tenant-{}", if chain.is_multiple_of(2) { 0 } else { 1 + chain / 2 % (TENANTS - 1) })
}

/// What differs between the tests.
struct Scene {
    name: &'static str,
    /// Of each fingerprint.
    chains: usize,
    /// Whether all of it fits.
    is_roomy: bool,
    file_mib: u64,
    files_max: usize,
    tenant_mib_max: u64,
}

const DISK_MIB: u64 = 64;
const HOST_MIB: u64 = 64;

#[test]
fn a_killed_daemon_loses_nothing_that_it_acknowledged() {
    let scene = Scene { name: "roomy", chains: 8, is_roomy: true, file_mib: 4, files_max: 18, tenant_mib_max: 64 };
    scene.play();
}

/// There is far more than there is room for, in bytes of all and of a tenant.
#[test]
fn a_killed_daemon_is_never_over_its_bytes() {
    let scene = Scene { name: "bytes", chains: 48, is_roomy: false, file_mib: 3, files_max: 40, tenant_mib_max: 24 };
    let caps = scene.play();
    assert!(caps.seen.0 + scene.file_mib * MIB > caps.store_bytes_max, "the limit was never reached: {:?}", caps.seen);
}

/// And in files.
#[test]
fn a_killed_daemon_is_never_over_its_files() {
    let scene = Scene { name: "files", chains: 48, is_roomy: false, file_mib: 3, files_max: 18, tenant_mib_max: 24 };
    let caps = scene.play();
    assert!(caps.seen.1 == caps.store_files_max, "the limit was never reached: {:?}", caps.seen);
}

#[expect(clippy::disallowed_methods, reason = "for whoever kills more often")]
fn kills() -> u32 {
    std::env::var("KVFERRY_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(KILLS)
}

impl Scene {
    fn play(&self) -> Caps {
        let kills = kills() / SCENES;
        let mut dice = Dice::throw(self.name);
        let memory = folder(Path::new("/dev/shm"));
        // On the file system of the build: not every temporary folder is on one that takes O_DIRECT.
        let disk = folder(Path::new(env!("CARGO_TARGET_TMPDIR")));
        let mut caps = Caps {
            arena: memory.path().join("arena"),
            arena_bytes: HOST_MIB * MIB,
            store: disk.path().join("store"),
            store_bytes_max: DISK_MIB * MIB,
            store_files_max: self.files_max,
            seen: (0, 0),
        };
        let mut daemon = Daemon::start_with(&self.options(&caps));
        let mut ledger = Ledger::new(self.chains, self.is_roomy);
        let mut drivers = [("E0", 0), ("E1", 0), ("E2", 1)].map(|(name, kind)| {
            let fingerprint = [7 + u8::try_from(kind).expect("few"); 32];
            let options = EngineOptions { shape: Shape::MEDIUM, fingerprint, ..Default::default() };
            Driver::new(StandInEngine::attach_with(&daemon, name, options), kind, name == "E2")
        });
        let (begun, mut killed, mut told, mut there) = (Instant::now(), 0, 0, 0);
        while killed < kills {
            let until = Instant::now() + dice.up_to(LIFE_MAX);
            while Instant::now() < until {
                let steps = drivers.iter_mut().filter_map(|driver| driver.step(&mut ledger, &mut dice).then_some(()));
                if steps.count() == 0 {
                    // Leaves the processor to the daemon.
                    std::thread::sleep(Duration::from_micros(50));
                }
                caps.check();
            }
            daemon.kill();
            killed += 1;
            if dice.below(4) == 0 {
                daemon.restart_and_kill(dice.up_to(START_MAX));
                killed += 1;
            }
            if !self.is_roomy && dice.below(16) == 0 {
                // As if the machine had been started again.
                std::fs::remove_file(&caps.arena).expect("it was there");
                ledger.lost_memory();
            }
            caps.check();
            // Or they would wait for an answer of who was killed in its start.
            drivers.iter().for_each(|driver| driver.engine.wait_gone());
            daemon.restart();
            for driver in &mut drivers {
                driver.drain(&mut ledger);
                driver.engine.wait_attached_again();
                driver.settle_clearing(&mut ledger);
            }
            there = self.check(&mut drivers, &mut ledger, &mut dice);
            caps.check();
            self.check_daemon(&daemon);
            if killed >= told + 50 || killed >= kills {
                told = killed;
                let seconds = begun.elapsed().as_secs_f64();
                println!("torture {}: {killed} of {kills} kills in {seconds:.0} s, {there} blocks there", self.name);
            }
        }
        for driver in &drivers {
            println!("torture {}: {}: {:?}", self.name, driver.engine.name, driver.counts);
        }
        println!("torture {}: {} bytes in {} files on the disk at most", self.name, caps.seen.0, caps.seen.1);
        assert!(there > 50, "next to nothing was stored: {there} blocks");
        caps
    }

    /// Every chain of every fingerprint, while nothing else is under way. How many blocks there are.
    fn check(&self, drivers: &mut [Driver], ledger: &mut Ledger, dice: &mut Dice) -> usize {
        let mut by_tenant = std::collections::BTreeMap::<_, usize>::new();
        for chain in 0..self.chains {
            // Those of the first fingerprint by either of its engines.
            for driver in [chain % 2, 2] {
                *by_tenant.entry(tenant(chain)).or_default() += drivers[driver].check(ledger, chain);
                // What stands behind a gap is found by nobody, until the gap is closed.
                if dice.below(4) == 0 {
                    drivers[driver].look_behind(ledger, chain);
                }
            }
        }
        let mib = |blocks: usize| blocks as u64 * Shape::MEDIUM.block_bytes() / MIB;
        for (tenant, blocks) in &by_tenant {
            // As much in host memory as on the disk.
            assert!(mib(*blocks) <= 2 * self.tenant_mib_max, "{blocks} blocks of {tenant}");
        }
        let there = by_tenant.values().sum();
        assert!(mib(there) <= HOST_MIB + DISK_MIB, "{there} blocks of all");
        there
    }

    /// As the daemon itself sees it.
    fn check_daemon(&self, daemon: &Daemon) {
        let tiers = &daemon.status()["tiers"];
        let number = |pointer: &str| tiers.pointer(pointer).and_then(serde_json::Value::as_u64).expect("a number");
        assert_eq!((number("/left_total/damaged"), number("/disk/left_total/damaged")), (0, 0), "{tiers}");
        assert!(number("/host_blocks") * Shape::MEDIUM.block_bytes() <= HOST_MIB * MIB, "{tiers}");
        assert!(number("/disk/blocks") * Shape::MEDIUM.block_bytes() <= DISK_MIB * MIB, "{tiers}");
        assert!(!self.is_roomy || number("/left_total/room") == 0, "{tiers}");
    }

    fn options(&self, caps: &Caps) -> DaemonOptions {
        let tables = format!(
            "[tier.host]\nmib = {HOST_MIB}\nblock_mib_max = 1\ntenant_mib_max = {tenant}\npath = {:?}\n\
             [tier.disk]\nmib = {DISK_MIB}\nfile_mib = {}\nfiles_max = {}\ntenant_mib_max = {tenant}\npath = {:?}\n",
            caps.arena,
            self.file_mib,
            self.files_max,
            caps.store,
            tenant = self.tenant_mib_max,
        );
        // However this process ends, its daemon ends with it.
        let within = ["setpriv", "--pdeathsig", "KILL", "--"].map(ToOwned::to_owned).to_vec();
        DaemonOptions { tables, log: "info", within, ..Default::default() }
    }
}

/// A folder that whoever runs this for hours finds again by its name, should it be killed.
fn folder(parent: &Path) -> tempfile::TempDir {
    let prefix = format!("kvferry-test-{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).expect("a folder")
}

const _: () = assert!(KINDS == 2, "one engine's fingerprint and another's");

//! The process that is killed: this program once more, in the folder of what it stores.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};

/// A process that is being started has everything that this one has open, locks of stores among them, until it runs another
/// program: none is started while a store is open here, by whichever test.
static STARTING: RwLock<()> = RwLock::new(());

/// A store, its journal, and something to do.
pub(crate) trait World {
    /// With what is in the folder.
    fn open(folder: &Path) -> Self;
    /// Everything is as the journal says; how many blocks there are.
    fn check(&mut self) -> u64;
    /// Begins or ends something.
    fn step(&mut self, random: &mut fastrand::Rng);
}

/// The victim's whole life, where a journal lies; by itself it does nothing.
pub(crate) fn live<W: World>() {
    if !Path::new("journal").exists() {
        return;
    }
    // Whoever was to kill it may be killed itself, and would leave it storing for ever.
    set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    // It ended before that was said: nobody waits for this process.
    if std::os::unix::process::parent_id().to_string() != std::fs::read_to_string("parent").expect("its number") {
        return;
    }
    let mut world = W::open(Path::new("."));
    world.check();
    let mut random = fastrand::Rng::new();
    loop {
        world.step(&mut random);
    }
}

/// One run of kills.
pub(crate) struct Kills {
    /// The test that is the victim.
    pub(crate) victim: &'static str,
    /// How many, unless the environment says otherwise.
    pub(crate) count: u64,
    /// The longest life. Lives are chosen to fall into start, recovery and storing alike.
    pub(crate) longest: Duration,
}

impl Kills {
    /// Starts and kills; everything is checked after each end, and `look` looks as often as it can. The most blocks.
    #[expect(clippy::disallowed_methods, reason = "for whoever kills more often, or once more as before")]
    pub(crate) fn run<W: World>(&self, folder: &Path, mut look: impl FnMut()) -> u64 {
        let told = |name: &str| std::env::var(name).ok().and_then(|word| word.parse().ok());
        let (seed, count) = (told("KVFERRY_TEST_SEED"), told("KVFERRY_KILLS").unwrap_or(self.count));
        let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
        println!("{}: {count} kills, KVFERRY_TEST_SEED={seed}", self.victim);
        let mut random = fastrand::Rng::with_seed(seed);
        let longest_us = u64::try_from(self.longest.as_micros()).expect("short");
        std::fs::write(folder.join("parent"), std::process::id().to_string()).expect("write");
        drop(open::<W>(folder));
        let (begun, mut most) = (Instant::now(), 0);
        for round in 1..=count {
            let alone = STARTING.write().unwrap_or_else(PoisonError::into_inner);
            let child = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", self.victim, "--quiet"])
                .current_dir(folder)
                .stdout(Stdio::null())
                .spawn();
            drop(alone);
            let mut child = Killed(child.expect("start the victim"));
            let end = Instant::now() + Duration::from_micros(random.u64(1_000..longest_us));
            while let Some(left) = end.checked_duration_since(Instant::now()) {
                look();
                std::thread::sleep(left.min(Duration::from_millis(1)));
            }
            child.0.kill().expect("kill -9");
            let status = child.0.wait().expect("its end");
            assert!(status.code().is_none(), "round {round}: the victim ended by itself: {status}");
            let there = open::<W>(folder).world.check();
            look();
            most = most.max(there);
            if round % 100 == 0 || round == count {
                let seconds = begun.elapsed().as_secs_f64();
                println!(
                    "{}: {round} of {count} kills in {seconds:.1} s, {there} blocks there, all whole",
                    self.victim
                );
            }
        }
        most
    }
}

/// A world of this process's, and what keeps others from starting processes meanwhile.
struct Open<W> {
    // Goes first.
    world: W,
    _nobody_starts: RwLockReadGuard<'static, ()>,
}

fn open<W: World>(folder: &Path) -> Open<W> {
    let nobody_starts = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    Open { world: W::open(folder), _nobody_starts: nobody_starts }
}

/// Does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Gone already is just as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that whoever runs this for hours finds again by its name, should it be killed.
pub(crate) fn folder(parent: &Path) -> tempfile::TempDir {
    let prefix = format!("kvferry-test-{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).expect("a folder")
}

//! One line that changes in place on a terminal, and is left out of files.
//!
//! ```text
//! data thread -> AtomicU64 -> this thread, five times a second -> stderr
//! ```
//!
//! The data thread only stores a number: writing to a terminal takes longer than a small transfer.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(200);

/// What is shown.
#[derive(Default)]
pub(super) struct Progress {
    shared: Arc<Shared>,
    painter: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    doing: Mutex<String>,
    bytes: AtomicU64,
    over: AtomicBool,
}

impl Progress {
    /// Paints on stderr, if that is a terminal.
    pub(super) fn on_terminal() -> Self {
        let shared = Arc::<Shared>::default();
        let painter = std::io::stderr().is_terminal().then(|| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.paint())
        });
        Self { shared, painter }
    }

    /// Begins a new line.
    pub(super) fn doing(&self, what: String) {
        self.shared.bytes.store(0, Ordering::Relaxed);
        *self.shared.doing.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Bytes moved since.
    pub(super) fn moved(&self, bytes: u64) {
        self.shared.bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(painter) = self.painter.take() {
            painter.thread().unpark();
            // A painter that panicked has nothing more to paint.
            let _ = painter.join();
        }
    }
}

impl Shared {
    fn paint(&self) {
        let mut stderr = std::io::stderr();
        let (mut last, mut at) = (0, Instant::now());
        while !self.over.load(Ordering::Relaxed) {
            std::thread::park_timeout(EVERY);
            let bytes = self.bytes.load(Ordering::Relaxed);
            let rate = bytes.saturating_sub(last) as f64 / at.elapsed().as_secs_f64() / 1e9;
            (last, at) = (bytes, Instant::now());
            let doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let speed = if bytes > 0 { format!("  {rate:.2} GB/s") } else { String::new() };
            // A terminal that went away is no reason to end.
            let _ = write!(stderr, "\r\x1b[K{doing}{speed}");
            let _ = stderr.flush();
        }
        let _ = write!(stderr, "\r\x1b[K");
    }
}

//! What the sidecars of all tests logged, WARN and above.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};

/// Log lines, kept for the tests.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

/// The log of this process. It is the default of every thread before the first line is logged: `tracing` remembers
/// for good that nobody listened to a line when it was first reached.
pub(crate) fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let lines = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone());
        tracing::subscriber::set_global_default(subscriber.with_max_level(tracing::Level::WARN).finish()).unwrap();
        log
    })
}

impl Log {
    /// The lines that mention `word`.
    pub(crate) fn about(&self, word: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

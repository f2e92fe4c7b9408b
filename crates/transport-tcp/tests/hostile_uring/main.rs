//! The hostile peers of `tests/hostile`, against a transport on a ring of `io_uring`.
//!
//! An end that encrypts runs over epoll here too; it meets ends in the clear that are on a ring.

#[path = "../certificates/mod.rs"]
mod certificates;
#[path = "../hostile/door.rs"]
mod door;
#[path = "../hostile/encrypted.rs"]
mod encrypted;
#[path = "../hostile/holder.rs"]
mod holder;
#[path = "../hostile/mutation.rs"]
mod mutation;
#[path = "../hostile/push.rs"]
mod push;
#[path = "../hostile/reader.rs"]
mod reader;
mod recall;
#[path = "../hostile/silence.rs"]
mod silence;
#[path = "../hostile/stage.rs"]
mod stage;

/// A ring; where that is missing the test runs over epoll once more, and says so by name.
fn io() -> kvferry_transport_tcp::Io {
    match kvferry_transport_tcp::probe_uring() {
        Ok(()) => kvferry_transport_tcp::Io::Uring,
        Err(missing) => {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            eprintln!("skipped over io_uring: {test}: {missing}");
            kvferry_transport_tcp::Io::Epoll
        }
    }
}

//! Which congestion control the kernel runs on data connections.
//!
//! ```text
//! new socket (inherited by what a listener accepts) -> what the kernel gave it -- paced? --> cubic, else reno
//! ```
//!
//! BBR paces: it lets packets go by a timer, at a rate that it estimates. Where a connection moves several gigabytes a
//! second that is a timer for every packet, on the core that is the bottleneck; and a sender that pauses to sum a piece
//! looks to it like a slower path. On loopback it costs a third of the throughput with checksums (docs/adr/0010).
//!
//! It must be chosen before a socket listens or connects: Linux never takes pacing off a connection again.
//!
//! Failure: an algorithm asked for by name that the kernel does not have, or does not allow us, is an error that names
//! it; `Auto` keeps what the kernel gave.

use std::io;
use std::os::fd::AsFd;

use socket2::SockRef;

/// What `Auto` takes in place of a paced algorithm, the first that is allowed. The kernel lets everyone have Reno.
const UNPACED: [&str; 2] = ["cubic", "reno"];
/// Longest name of an algorithm: Linux, `TCP_CA_NAME_MAX` less its end.
const NAME_MAX: usize = 15;

/// Which congestion control data connections use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// The kernel's own choice (`net.ipv4.tcp_congestion_control`), but cubic or Reno where that is BBR. Right between
    /// the nodes of one data centre.
    #[default]
    Auto,
    /// The kernel's own choice, whatever it is. Right where peers are milliseconds apart and packets are lost.
    System,
    /// By its name in the kernel, such as `dctcp`.
    Named(String),
}

impl Congestion {
    /// Whether a name could be one of the kernel's.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        (1..=NAME_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
    }

    /// Sets it on a socket that is not connected. Those that a listener accepts from then on have it too.
    ///
    /// # Errors
    ///
    /// The kernel has no algorithm of that name, or does not allow us to use it.
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let given = SockRef::from(socket);
        match self {
            Self::System => Ok(()),
            Self::Named(name) => given.set_tcp_congestion(name.as_bytes()).map_err(|error| {
                let kind = error.kind();
                io::Error::new(kind, format!("congestion control {name:?}: {error}; /proc/sys/net/ipv4/tcp_available_congestion_control lists what the kernel has, tcp_allowed_congestion_control what it allows without CAP_NET_ADMIN"))
            }),
            Self::Auto => {
                if current(socket)?.starts_with("bbr") {
                    // None allowed: the kernel's own works too.
                    let _ = UNPACED.iter().any(|name| given.set_tcp_congestion(name.as_bytes()).is_ok());
                }
                Ok(())
            }
        }
    }
}

/// What a socket uses.
pub(crate) fn current(socket: &impl AsFd) -> io::Result<String> {
    let name = SockRef::from(socket).tcp_congestion()?;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn socket() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket")
    }

    #[test]
    fn names_are_those_of_a_kernel() {
        for name in ["cubic", "bbr3", "dctcp-ece", "my_own"] {
            assert!(Congestion::is_name(name), "{name}");
        }
        for name in ["", "Cubic", "sixteen-letters-", "a b", "bbr\0"] {
            assert!(!Congestion::is_name(name), "{name}");
        }
    }

    #[test]
    fn the_systems_choice_is_left_alone() {
        let (ours, given) = (socket(), socket());
        Congestion::System.apply(&ours).expect("nothing to do");
        assert_eq!(current(&ours).expect("a name"), current(&given).expect("a name"));
    }

    #[test]
    fn a_named_one_is_set_and_inherited() {
        let listener = socket();
        // The one algorithm that no kernel is without and that everyone may use.
        Congestion::Named("reno".to_owned()).apply(&listener).expect("reno");
        listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
        listener.listen(1).expect("listen");
        let caller = socket();
        Congestion::Named("reno".to_owned()).apply(&caller).expect("reno");
        caller.connect(&listener.local_addr().expect("an address")).expect("connect");
        let (accepted, _) = listener.accept().expect("accept");
        assert_eq!([current(&caller).expect("a name"), current(&accepted).expect("a name")], ["reno", "reno"]);
    }

    #[test]
    fn auto_never_leaves_a_paced_one() {
        let socket = socket();
        // As a system's default would be, where the kernel has it; elsewhere the default itself is looked at.
        let _ = socket.set_tcp_congestion(b"bbr");
        let given = current(&socket).expect("a name");
        Congestion::Auto.apply(&socket).expect("there always is one");
        let taken = current(&socket).expect("a name");
        assert!(!taken.starts_with("bbr"), "{taken}");
        assert!(given.starts_with("bbr") || taken == given, "{given} was fine, and became {taken}");
    }

    #[test]
    fn an_unknown_one_is_named_in_the_error() {
        let error = Congestion::Named("no-such-thing".to_owned()).apply(&socket()).expect_err("no kernel has it");
        assert!(error.to_string().contains("\"no-such-thing\""), "{error}");
        assert!(error.to_string().contains("tcp_available_congestion_control"), "{error}");
    }
}

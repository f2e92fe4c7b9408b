//! The command line of the sidecar.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use clap::value_parser;

use super::address::{Allowed, EngineUrl, HostPort};
use super::config::SidecarConfig;

/// Options of `kvferry sidecar`. Each is one field of [`SidecarConfig`], with the same default.
#[derive(Args, Clone, Debug)]
pub struct SidecarOptions {
    /// Where clients connect. Port 0 takes a free port, which is printed.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,

    /// The decode engine behind this sidecar.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8200")]
    pub decode: EngineUrl,

    /// Prefill engines that take turns when a request names none. Repeat the option or separate with commas. Without
    /// it, a request that names no prefiller is prefilled and decoded by the decode engine alone.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub prefill: Vec<HostPort>,

    /// Prefill engines that the header x-prefiller-host-port may name: HOST:PORT, or HOST for all its ports. Repeat the
    /// option or separate with commas. Engines given by --prefill are allowed already; any other is answered with 403,
    /// because the header would otherwise send the sidecar to whatever address its sender likes.
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub allow: Vec<Allowed>,

    /// Believe `kv_transfer_params` in client bodies and pass them to the decode engine. Without this they are removed:
    /// they tell the engine where to fetch memory. Set it only where nobody but a router that prefills by itself can
    /// reach the sidecar.
    #[arg(long)]
    pub trust_client_kv_transfer_params: bool,

    /// Largest JSON request body, in MiB; a larger one is answered with 413.
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = value_parser!(u16).range(1..=1024))]
    pub body_mib_max: u16,

    /// Most client connections at once; further ones wait. Each may need three file descriptors (ulimit -n).
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = value_parser!(u32).range(1..=65536))]
    pub connections_max: u32,

    /// Time for one TCP connect to an engine, in milliseconds; then the next prefiller is tried.
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = value_parser!(u64).range(1..=60_000))]
    pub connect_timeout_ms: u64,

    /// Time for prefill, in seconds; then the decode engine prefills by itself. Must cover the queue of a busy
    /// prefiller and the longest prompt.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = value_parser!(u64).range(1..=86_400))]
    pub prefill_timeout_s: u64,

    /// Longest silence of the decode engine, in seconds: before its answer begins (for an answer that is not streamed,
    /// the whole generation) and between two pieces of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = value_parser!(u64).range(1..=86_400))]
    pub decode_silence_s_max: u64,

    /// Time for a client to send its request body, in seconds; then it is answered with 408.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u64).range(1..=86_400))]
    pub upload_timeout_s: u64,

    /// After SIGTERM, how long answers under way may go on, in seconds. Keep it below Kubernetes'
    /// terminationGracePeriodSeconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u64).range(0..=86_400))]
    pub drain_s_max: u64,
}

impl From<SidecarOptions> for SidecarConfig {
    fn from(options: SidecarOptions) -> Self {
        let SidecarOptions {
            listen,
            decode,
            prefill,
            allow,
            trust_client_kv_transfer_params,
            body_mib_max,
            connections_max,
            connect_timeout_ms,
            prefill_timeout_s,
            decode_silence_s_max,
            upload_timeout_s,
            drain_s_max,
        } = options;
        Self {
            listen,
            decode,
            prefillers: prefill,
            allowed: allow,
            trust_client_params: trust_client_kv_transfer_params,
            body_bytes_max: usize::from(body_mib_max) << 20,
            // Saturates on targets with a 16-bit usize, where check() then refuses it.
            connections_max: usize::try_from(connections_max).unwrap_or(usize::MAX),
            connect_timeout: Duration::from_millis(connect_timeout_ms),
            prefill_timeout: Duration::from_secs(prefill_timeout_s),
            decode_silence_max: Duration::from_secs(decode_silence_s_max),
            upload_timeout: Duration::from_secs(upload_timeout_s),
            drain_max: Duration::from_secs(drain_s_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: SidecarOptions,
    }

    fn parse(words: &[&str]) -> SidecarConfig {
        Line::try_parse_from([&["sidecar"], words].concat()).map(|line| line.options.into()).unwrap()
    }

    #[test]
    fn no_options_are_the_defaults() {
        assert_eq!(format!("{:?}", parse(&[])), format!("{:?}", SidecarConfig::default()));
    }

    #[test]
    fn lists_repeat_or_separate_with_commas() {
        let config = parse(&["--prefill", "a:1,b:2", "--prefill", "c:3", "--allow", "d,e:5", "--body-mib-max", "1024"]);
        assert_eq!(config.prefillers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "b:2", "c:3"]);
        assert_eq!(config.allowed, [Allowed::Host("d".into()), Allowed::HostPort("e:5".parse().unwrap())]);
        assert_eq!(config.body_bytes_max, SidecarConfig::BODY_BYTES_LIMIT);
        assert!(config.check().is_ok());
    }

    #[test]
    fn wrong_values_are_refused_with_their_form() {
        let refused = |words: &[&str]| Line::try_parse_from([&["sidecar"], words].concat()).err().unwrap().to_string();
        assert!(refused(&["--prefill", "a"]).contains("HOST:PORT"));
        assert!(refused(&["--decode", "https://a:1"]).contains("http://HOST:PORT"));
        assert!(refused(&["--connections-max", "0"]).contains("1..=65536"));
    }
}

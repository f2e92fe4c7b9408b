use super::*;

fn refusal(text: &str) -> String {
    format!("{:#}", Config::parse(text).expect_err("must be refused"))
}

#[test]
fn an_empty_file_works_on_a_laptop() {
    let config = Config::parse("").expect("defaults");
    assert_eq!(config.peer_listen.to_string(), "127.0.0.1:7405");
    assert_eq!(config.socket(), Path::new("/run/kvferry/kvferry.sock"));
    assert_eq!(config.peer_allow, [AllowedPeer::Loopback]);
}

#[test]
fn unknown_keys_are_refused_with_their_line() {
    let said = refusal("[attach]\ndirectory = \"/x\"\n\n[limits]\nleases = 3\n");
    assert!(said.contains("line 5") && said.contains("leases") && said.contains("leases_max"), "{said}");
    assert!(refusal("[peers]\n").contains("line 1"), "unknown table");
}

#[test]
fn beyond_loopback_needs_tls_or_words() {
    let said = refusal("[peer]\nlisten = \"10.0.0.1:7405\"\n");
    assert!(said.contains("[peer.tls]") && said.contains(PLAINTEXT_WORDS), "{said}");
    let said = refusal("[peer]\nlisten = \"10.0.0.1:7405\"\nplaintext_beyond_loopback = \"yes\"\n");
    assert!(said.contains(PLAINTEXT_WORDS), "{said}");
    let words = format!("[peer]\nlisten = \"10.0.0.1:7405\"\nplaintext_beyond_loopback = \"{PLAINTEXT_WORDS}\"\n");
    assert_eq!(Config::parse(&words).expect("accepted in words").peer_allow, [AllowedPeer::Loopback]);
}

#[test]
fn an_address_that_nobody_can_call_is_refused() {
    let words = format!("[peer]\nlisten = \"0.0.0.0:7405\"\nplaintext_beyond_loopback = \"{PLAINTEXT_WORDS}\"\n");
    assert!(refusal(&words).contains("peer.advertise"));
    assert!(refusal("[peer]\nadvertise = \"host\"\n").contains("host:port"));
}

#[test]
fn limits_have_limits() {
    for (text, word) in [
        ("[limits]\ntransfers_max = 0", "transfers_max"),
        ("[limits]\ncopy_threads = 0", "copy_threads"),
        ("[limits]\ndata_threads = 0", "data_threads"),
        ("[limits]\ndata_threads = 17", "data_threads"),
        ("[limits]\ncopy_threads = 65", "copy_threads"),
        ("[limits]\nrealtime_priority = 100", "0 for none, or 1 to 99"),
        ("[limits]\nlease_ms_max = 99999999999", "lease_ms_max"),
        ("[limits]\npeer_bytes_per_second_max = 1", "peer_bytes_per_second_max"),
        ("[limits]\nreconnect_ms_max = 600001", "reconnect_ms_max"),
        ("[limits]\nreconnect_ms_min = 0", "reconnect_ms_min"),
        ("[limits]\nreconnect_ms_min = 3000", "at most limits.reconnect_ms_max"),
        ("[limits]\npeer_idle_s_max = 0", "peer_idle_s_max"),
        ("[peer]\nstreams = 17", "peer.streams"),
        ("[peer]\nknown = [\"10.0.0.1:7405\", \"10.0.0.2\"]", "\"10.0.0.2\" is not host:port"),
        ("[peer]\nknown = [\"10.0.0.1:0\"]", "host:port"),
        ("[peer]\nsocket_buffer_kib = 127", "0, or 128 to 1048576"),
        ("[peer]\nsocket_buffer_kib = 4294967295", "peer.socket_buffer_kib"),
        ("[peer]\ncongestion = \"\"", "peer.congestion"),
        ("[peer]\ncongestion = \"Not One\"", "tcp_available_congestion_control"),
        ("node = \"\"", "node"),
    ] {
        assert!(refusal(text).contains(word), "{text}");
    }
}

#[test]
fn copy_threads_follow_the_cores_unless_told() {
    let threads = |text| Config::parse(text).expect("accepted").limits.copy_threads;
    assert_eq!(threads("[limits]\ncopy_threads = 7"), 7);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(threads(""), cores.min(4));
}

#[test]
fn data_threads_follow_the_cores_unless_told() {
    let threads = |text| Config::parse(text).expect("accepted").limits.data_threads;
    assert_eq!(threads("[limits]\ndata_threads = 3"), 3);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(threads(""), cores.min(2));
}

#[test]
fn real_time_threads_do_not_spin() {
    let realtime = |text| Config::parse(text).expect("accepted").limits.realtime;
    assert_eq!(realtime(""), Realtime::IfAllowed(2));
    assert_eq!(realtime("[limits]\nrealtime_priority = 0"), Realtime::Never);
    assert_eq!(realtime("[limits]\nrealtime_priority = 99"), Realtime::Wanted(99));
    assert_eq!(realtime("[limits]\nspin_us = 20"), Realtime::Never);
    assert_eq!(realtime("[attach]\nring_spin_us = 20"), Realtime::Never);
    assert_eq!(realtime("[limits]\nspin_us = 20\nrealtime_priority = 0"), Realtime::Never);
    for spins in ["[limits]\nspin_us = 20\n", "[attach]\nring_spin_us = 20\n[limits]\n"] {
        assert!(refusal(&format!("{spins}realtime_priority = 1")).contains("one or the other"), "{spins}");
    }
}

#[test]
fn networks_cover_what_they_say() {
    let covers = |net: &str, ip: &str| AllowedPeer::parse(net).expect("network").covers(ip.parse().expect("address"));
    assert!(covers("10.1.0.0/16", "10.1.255.1") && !covers("10.1.0.0/16", "10.2.0.1"));
    assert!(covers("0.0.0.0/0", "1.2.3.4") && !covers("0.0.0.0/0", "::1"));
    assert!(covers("10.0.0.1", "10.0.0.1") && !covers("10.0.0.1", "10.0.0.2"));
    assert!(covers("fd00::/8", "fd12::1") && !covers("fd00::/8", "fe80::1") && covers("::/0", "::1"));
    assert!(AllowedPeer::parse("10.0.0.0/33").is_err() && AllowedPeer::parse("example.org").is_err());
}

const TLS: &str = "[peer.tls]\ncertificate = \"/c\"\nkey = \"/k\"\nauthority = \"/a\"\nname = \"n\"\n";

#[test]
fn tls_covers_data_unless_it_is_told_not_to() {
    let of = |data: &str| Config::parse(&format!("[peer]\nlisten = \"10.0.0.1:7405\"\n{TLS}{data}")).expect("accepted");
    assert!(of("").encrypts_data() && of("").in_the_clear().is_none());
    assert!(of("data = true\n").encrypts_data());
    let clear = of("data = false\n");
    assert!(!clear.encrypts_data());
    assert!(clear.in_the_clear().is_some_and(|warning| warning.contains("peer.tls.data")));
    assert!(!Config::parse("").expect("defaults").encrypts_data());
}

#[test]
fn a_host_tier_needs_its_size_and_nothing_else() {
    assert!(Config::parse("").expect("accepted").tier_host.is_none());
    let host = Config::parse("[tier.host]\nmib = 100").expect("accepted").tier_host.expect("a tier");
    assert_eq!((host.bytes, host.tenant_bytes_max, host.block_bytes_max), (100 << 20, 100 << 20, 8 << 20));
    for (text, word) in [
        ("[tier.host]\n", "mib"),
        ("[tier.host]\nmib = 63", "tier.host.mib = 63: 64 to"),
        ("[tier.host]\nmib = 64\npath = \"here\"", "absolute path"),
        ("[tier.host]\nmib = 64\ntenant_mib_max = 0", "tier.host.tenant_mib_max"),
        ("[tier.host]\nmib = 64\ngib = 1", "gib"),
        ("[tier.shared]\n", "shared"),
    ] {
        assert!(refusal(text).contains(word), "{text}: {}", refusal(text));
    }
}

#[test]
fn tenants_have_quotas_of_their_own() {
    let tiers = "[tier.host]\nmib = 100\n[tier.disk]\nmib = 1000\npath = \"/disk\"\n";
    let text = format!(
        "{tiers}[tier.tenants.\"team a\"]\nhost_mib_max = 10\n[tier.tenants.b]\nhost_mib_max = 0\ndisk_mib_max = 7"
    );
    let config = Config::parse(&text).expect("accepted");
    let (host, disk) = (config.tier_host.expect("a tier"), config.tier_disk.expect("a tier"));
    // FNV-1a of the name's SHA-256, which is what engines send: `test_the_name_of_a_tenant` has the same.
    let (team_a, b) = (kvferry_tier::Tenant(0x266c_385d_569f_d0df), host.tenants[0].0);
    assert_eq!(host.tenants, [(b, 0), (team_a, 10 << 20)]);
    assert_eq!(disk.tenants, [(b, 7 << 20)]);
    for (text, word) in [
        ("[tier.tenants.a]\nhost_mib_max = 1".to_owned(), "there is no [tier.host]"),
        ("[tier.host]\nmib = 100\n[tier.tenants.a]\ndisk_mib_max = 1".to_owned(), "there is no [tier.disk]"),
        (format!("{tiers}[tier.tenants.a]\nhost_mib_max = 101"), "host_mib_max = 101 is more than tier.host.mib = 100"),
        (format!("{tiers}[tier.tenants.a]\ndisk_mib_max = 1001"), "more than tier.disk.mib = 1000"),
        (format!("{tiers}[tier.tenants.a]\n"), "set host_mib_max, disk_mib_max or both"),
        (format!("{tiers}[tier.tenants.\"\"]\nhost_mib_max = 1"), "cache_salt"),
        (format!("{tiers}[tier.tenants.a]\nmib = 1"), "unknown field `mib`"),
        (format!("{tiers}[tier.tenants.a]\nhost_mib_max = -1"), "host_mib_max"),
    ] {
        assert!(refusal(&text).contains(word), "{text}: {}", refusal(&text));
    }
}

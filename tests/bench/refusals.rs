//! Bad arguments and bad callers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::process::{Running, TINY, parse, refusal, stdout};

#[test]
fn bad_arguments_say_what_is_right() {
    for (arguments, hint) in [
        ("--block-size 64KB", "64K"),
        ("--blocks 0", "at least one block"),
        ("--streams 65", "1 to 64"),
        ("--depth 0", "1 to 256"),
        ("--copy-threads 65", "1 to 64"),
        ("--duration 5", "such as 5s"),
        ("--rate 0", "above 0"),
        ("--model gpt-5", "llama-3.1-8b"),
        ("--model llama-3.1-8b --tp 5", "cannot be shared"),
        ("--transport rdma", "possible values"),
        ("--connect 127.0.0.1:1 --transport copy", "no far end"),
        ("--block-size 1G --blocks 60", "do not fit"),
        ("--json report", "report"),
        ("listen", "--address"),
        ("listen --address nowhere", "nowhere"),
    ] {
        let said = refusal(arguments);
        assert!(said.contains(hint), "{arguments}: {said}");
    }
}

#[test]
fn a_far_end_that_is_not_there_is_named() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let said = refusal(&format!("--connect {address} {TINY}"));
    assert!(said.contains(&address.to_string()) && said.contains("bench listen"), "{said}");
}

/// What a listening far end answers to these bytes, before it hangs up.
fn answer(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    let mut said = String::new();
    // A reset is an answer too, also in the middle of a write: there are bytes it does not care to read.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    let _ = stream.read_to_string(&mut said);
    said
}

#[test]
fn a_far_end_outlives_bad_callers() {
    let mut far = Running::start("listen --address 127.0.0.1:0");
    let line = far.first_line();
    let address = line.strip_prefix("listening on ").expect("its address");
    assert!(answer(address, b"GET / HTTP/1.1\r\n\r\n").contains("does not speak"));
    assert!(answer(address, b"\"ready\"\n").contains("greeting"));
    assert!(answer(address, b"{\"hello\":{\"protocol\":3,\"version\":\"9.9.9\"}}\n").contains("use the same"));
    answer(address, &vec![b'x'; 1 << 20]);
    answer(address, b"");
    let hello = format!("{{\"hello\":{{\"protocol\":3,\"version\":\"{}\"}}}}\n", env!("CARGO_PKG_VERSION"));
    let other_build = hello.replace("\"protocol\":3", "\"protocol\":1");
    assert!(answer(address, other_build.as_bytes()).contains("use the same build"));
    let cell = |change: (&str, &str)| {
        let rows = parse(&stdout(&format!("{TINY} --transport copy --json")));
        let cell = rows[0]["cell"].to_string().replace("\"copy\"", "\"tcp\"").replace(change.0, change.1);
        format!("{hello}{{\"open\":{{\"cell\":{cell},\"keys\":[],\"identity\":null}}}}\n")
    };
    let too_much = cell(("\"region_bytes\":4194304", "\"region_bytes\":17592186044416"));
    assert!(answer(address, too_much.as_bytes()).contains("refused"));
    assert!(answer(address, cell(("\"blocks\":8", "\"blocks\":4294967295")).as_bytes()).contains("refused"));
    assert!(answer(address, cell(("", "")).as_bytes()).contains("0 keys"));

    let rows = parse(&stdout(&format!("--connect {address} {TINY} --json")));
    assert_eq!(rows.len(), 2, "between hosts there is no copy");
    assert!(rows.iter().all(|row| row["verified"] == true));
}

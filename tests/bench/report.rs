//! The page that `kvferry bench report` makes.

use std::fs;

use crate::process::{TINY, refusal, stdout};

#[test]
fn rows_of_several_files_make_one_page() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let ours = "--region 4M --rounds 1 --duration 20ms --blocks 64 --block-size 4K --spin-us 20 --transport tcp";
    stdout(&format!("{ours} --out {}", path("ours.jsonl")));
    let rival = "{\"peer\":\"a <rival>\",\"cell\":{\"transport\":\"tcp\",\"direction\":\"read\",\"block_bytes\":4096,\
                 \"blocks\":64},\"gbps\":1.25,\"rounds\":[{\"gbps\":1.25}],\"ceilings\":{}}\n";
    fs::write(path("rival.jsonl"), rival).expect("write");
    let said = stdout(&format!("report {} {} -o {}", path("ours.jsonl"), path("rival.jsonl"), path("page.html")));
    assert!(said.contains("3 rows"), "{said}");
    let page = fs::read_to_string(path("page.html")).expect("the page");
    for wanted in ["tcp read", "tcp write", "64 x 4K", "kvferry", "a &lt;rival&gt;", "class=\"ceiling\"", "1.25"] {
        assert!(page.contains(wanted), "{wanted}");
    }
    assert!(!page.contains("http"), "it needs nothing from elsewhere");
}

#[test]
fn what_is_no_row_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("rows.jsonl").display().to_string();
    stdout(&format!("{TINY} --transport copy --out {file}"));
    let mut text = fs::read_to_string(&file).expect("the rows");
    text.push_str("{\"half\":");
    fs::write(&file, text).expect("write");
    let page = directory.path().join("page.html");
    let said = refusal(&format!("report {file} -o {}", page.display()));
    assert!(said.contains(&file) && said.contains("line 2"), "{said}");
    assert!(!page.exists(), "no page of half the rows");
    fs::write(&file, "\n").expect("write");
    assert!(refusal(&format!("report {file}")).contains("no rows"));
    assert!(refusal("report /nowhere/at/all").contains("/nowhere/at/all"));
    assert!(refusal("report").contains("FILE"));
}

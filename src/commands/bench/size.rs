//! Sizes and times as people write them: `64K`, `1M`, `500ms`.
//!
//! Limits: a size is a whole number with a binary suffix, a time a whole number with a unit. Anything else is refused
//! with what would have been accepted. Why not `1.5M` or `64 kB`: two spellings of one cell make two rows of one table.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// `64`, `64K`, `1M`, `2G`: binary multiples of a byte.
pub(super) fn parse_bytes(text: &str) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let Ok(number) = digits.parse::<u64>() else {
        bail!("{text:?} is no size: write a whole number of bytes, or one with K, M or G, such as 64K");
    };
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).with_context(|| format!("{text:?} is out of range"))
}

/// `5s`, `500ms`, `2m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration> {
    let unit_at = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let scale_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => bail!("{text:?} is no time: write a whole number with ms, s or m, such as 5s"),
    };
    let number = digits.parse::<u64>().with_context(|| format!("{text:?} is no time: it begins with no number"))?;
    let millis = number.checked_mul(scale_ms).with_context(|| format!("{text:?} is out of range"))?;
    Ok(Duration::from_millis(millis))
}

/// The shortest exact spelling: `64K`, `1M`, `100`.
pub(super) fn bytes(count: u64) -> String {
    for (shift, suffix) in [(30, "G"), (20, "M"), (10, "K")] {
        if count > 0 && count.trailing_zeros() >= shift {
            return format!("{}{suffix}", count >> shift);
        }
    }
    count.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_they_print() {
        for text in ["1", "64", "1000", "1K", "64K", "1M", "3G", "1025K"] {
            assert_eq!(bytes(parse_bytes(text).expect("a size")), text);
        }
        assert_eq!(parse_bytes("2m").expect("a size"), 2 << 20);
    }

    #[test]
    fn wrong_sizes_say_what_is_right() {
        for text in ["", "K", "64KB", "1.5M", "-1", "0", "0K", "18446744073709551615G", "é"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
        let said = parse_bytes("64kB").expect_err("refused").to_string();
        assert!(said.contains("64K"), "{said}");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_duration("5s").expect("a time"), Duration::from_secs(5));
        assert_eq!(parse_duration("250ms").expect("a time"), Duration::from_millis(250));
        assert_eq!(parse_duration("2m").expect("a time"), Duration::from_secs(120));
        for text in ["", "5", "s", "5h", "1.5s", "99999999999999999999s", "18446744073709551615m", "5é"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }
}

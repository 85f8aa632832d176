//! The `Range` header (RFC 9110 §14), for one range of bytes.

use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The whole file: no range, several ranges, or an invalid header (which RFC 9110 says to
    /// ignore).
    Whole,
    Part(Range<u64>),
    /// 416.
    Unsatisfiable,
}

/// The part of a file of `size` bytes that `header` requests.
pub fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some(spec) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else { return Wanted::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    if spec.contains(',') {
        return Wanted::Whole;
    }
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // Too many digits for a u64 is beyond any file.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let range = match (first, last) {
        ("", last) => match number(last) {
            Some(count) => size.saturating_sub(count)..size,
            None => return Wanted::Whole,
        },
        (first, "") => match number(first) {
            Some(first) => first..size,
            None => return Wanted::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
            _ => return Wanted::Whole,
        },
    };
    if range.start >= range.end { Wanted::Unsatisfiable } else { Wanted::Part(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use Wanted::{Part, Unsatisfiable, Whole};
        for (header, expected) in [
            (None, Whole),
            (Some("bytes=0-0"), Part(0..1)),
            (Some("bytes=0-99"), Part(0..10)),
            (Some("bytes=2-4"), Part(2..5)),
            (Some("bytes=7-"), Part(7..10)),
            (Some("bytes=-3"), Part(7..10)),
            (Some("bytes=-30"), Part(0..10)),
            (Some("bytes=-0"), Unsatisfiable),
            (Some("bytes=10-"), Unsatisfiable),
            (Some("bytes=99999999999999999999999-"), Unsatisfiable),
            (Some("bytes=4-2"), Whole),
            (Some("bytes=0-1,3-4"), Whole),
            (Some("bytes=a-b"), Whole),
            (Some("bytes="), Whole),
            (Some("lines=1-2"), Whole),
        ] {
            assert_eq!(wanted(header, 10), expected, "{header:?}");
        }
        assert_eq!(wanted(Some("bytes=0-0"), 0), Unsatisfiable);
    }
}

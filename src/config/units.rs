//! Parses values with units: `2147483648` or `"2GiB"`, `1800000` or `"30m"`.

/// Bytes: a whole number, optionally with a unit. `K M G T` and `KiB MiB GiB TiB` are powers of
/// 1024 (as in systemd), `kB MB GB TB` powers of 1000.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Milliseconds: a whole number, optionally with a unit `ms s m min h d`.
pub(super) fn millis(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("10485760", Some(10 << 20)),
            ("2GiB", Some(2 << 30)),
            (" 2 GiB ", Some(2 << 30)),
            ("2G", Some(2 << 30)),
            ("2GB", Some(2_000_000_000)),
            ("1.5G", None),
            ("-1", None),
            ("G", None),
            ("", None),
            ("2Gib", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn times() {
        for (text, expected) in
            [("500", Some(500)), ("500ms", Some(500)), ("30m", Some(1_800_000)), ("2 h", Some(7_200_000)), ("1w", None)]
        {
            assert_eq!(millis(text), expected, "{text}");
        }
    }
}

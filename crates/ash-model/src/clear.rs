//! Detects model addresses that would send a key over the network unencrypted. Pure.

use std::net::IpAddr;

/// Whether requests to this base URL leave the host unencrypted: every `http://` URL, except for a
/// loopback address or `localhost`.
pub fn sends_in_clear(url: &str) -> bool {
    let url = url.trim();
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    if !scheme.eq_ignore_ascii_case("http") {
        return false;
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((inner, _)) => inner,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let local =
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    !local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_may_be_plain() {
        for url in [
            "https://api.anthropic.com",
            "HTTPS://10.0.0.1",
            "http://localhost",
            "http://LOCALHOST:8080/v1",
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://[::1]:80/x",
            "offline",
        ] {
            assert!(!sends_in_clear(url), "{url}");
        }
        for url in [
            "http://api.anthropic.com",
            "HTTP://example.test/",
            "http://10.0.0.1:8080",
            "http://127.0.0.1.evil.test",
            "http://localhost.evil.test",
            "http://127.0.0.1@evil.test",
            "http://evil.test/127.0.0.1",
            "http://[2001:db8::1]",
            "http://0.0.0.0",
            "http://",
        ] {
            assert!(sends_in_clear(url), "{url}");
        }
    }
}

//! The key that ashd writes at its first start, and to which address it is sent.
//!
//! ```text
//!   --key, ASH_API_KEY          to any --url
//!   no --url                    /run/ashd/ashd.sock, by the caller's uid: no key is sent
//!   <data dir>/initial-api-key  only to ashd on this host: its unix socket, or a loopback port on
//!                               which root or ashd listens
//! ```
//!
//! While ashd is down, any user of the host can listen on its port. Root's next command would send
//! that user the admin's key.

use std::path::Path;

use hyper::Uri;

use super::cli::{Cli, URL};
use super::{CtlError, unix};
use ash_kernel::tree::Tree;

/// Maximum bytes of a key file.
const MOST: u64 = 4096;
/// State of a listening socket in /proc/net/tcp.
const LISTENS: &str = "0A";

/// Chooses the URL and the key for requests.
///
/// # Errors
/// [`CtlError::Usage`] when the first key would go to another host or another user of this host.
pub fn choose(cli: &Cli) -> Result<(String, Option<String>), CtlError> {
    if let Some(key) = cli.key.clone().filter(|key| !key.is_empty()) {
        return Ok((cli.url.clone(), Some(key)));
    }
    // Without a key, the unix socket may accept the caller by uid.
    if cli.url == URL && unix::is_open(unix::SOCKET) {
        return Ok((format!("unix:{}", unix::SOCKET), None));
    }
    let Some((key, owner)) = read(&cli.data_dir) else { return Ok((cli.url.clone(), None)) };
    if unix::path_of(&cli.url).is_some() {
        return Ok((cli.url.clone(), Some(key)));
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    match judge(&cli.url, &tables.concat(), owner) {
        // Without a listener nothing is sent; the request fails with "cannot reach ashd".
        Listener::Trusted | Listener::None => Ok((cli.url.clone(), Some(key))),
        Listener::Elsewhere => Err(CtlError::Usage(format!(
            "{} is not on this host's loopback, and the key in {} is for ashd on this host only: pass a key with --key or ASH_API_KEY",
            cli.url,
            cli.data_dir.display()
        ))),
        Listener::Stranger(uid) => Err(CtlError::Usage(format!(
            "uid {uid} listens at {}, which is neither root nor ashd's uid {owner}: the key in {} is not sent there. Is ashd running? \
             See `ss -ltnp`; set another address with --url",
            cli.url,
            cli.data_dir.display()
        ))),
    }
}

/// The key, and the uid that owns it. ashd could put a link there and learn what is read: only a
/// file of its own is accepted.
fn read(data_dir: &Path) -> Option<(String, u32)> {
    let data = Tree::open(data_dir).ok()?;
    let text = String::from_utf8(data.read("initial-api-key", MOST).ok()?).ok()?;
    let key = text.trim().to_owned();
    (!key.is_empty()).then_some((key, data.owner().uid))
}

#[derive(Debug, PartialEq, Eq)]
enum Listener {
    /// Root (systemd, or a start as root) or ashd.
    Trusted,
    None,
    Stranger(u32),
    /// Not on this host's loopback, or unknown.
    Elsewhere,
}

/// Who listens at the URL, from the text of /proc/net/tcp and tcp6.
fn judge(url: &str, table: &str, owner: u32) -> Listener {
    let Ok(uri) = url.trim_end_matches('/').parse::<Uri>() else { return Listener::Elsewhere };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !loopback {
        return Listener::Elsewhere;
    }
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let suffix = format!(":{port:04X}");
    let mut found = Listener::None;
    for line in table.lines() {
        // Number, local address, remote address, state, queues, timer, retransmissions, uid, ...
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, own, _, state, _, _, _, uid, ..] = fields[..] else { continue };
        if state != LISTENS || !own.ends_with(&suffix) {
            continue;
        }
        match uid.parse::<u32>() {
            Ok(uid) if uid == 0 || uid == owner => found = Listener::Trusted,
            // On any address of the host: which one the connection reaches is not worth the risk.
            Ok(uid) => return Listener::Stranger(uid),
            Err(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_decides() {
        const HEAD: &str =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let line = |address: &str, state: &str, uid: u32| {
            format!(
                "{HEAD}   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 1 1 0\n"
            )
        };
        let own = "0100007F:1004"; // 127.0.0.1:4100
        for (url, table, wanted) in [
            (URL, line(own, "0A", 0), Listener::Trusted),
            (URL, line(own, "0A", 999), Listener::Trusted),
            (URL, line("00000000000000000000000000000000:1004", "0A", 0), Listener::Trusted),
            (URL, line(own, "0A", 1000), Listener::Stranger(1000)),
            (
                URL,
                line(own, "0A", 0) + &line("00000000000000000000000001000000:1004", "0A", 1000),
                Listener::Stranger(1000),
            ),
            (URL, line(own, "01", 1000), Listener::None),
            (URL, line("0100007F:1005", "0A", 1000), Listener::None),
            (URL, String::new(), Listener::None),
            ("http://[::1]:4100/", line(own, "0A", 0), Listener::Trusted),
            ("http://localhost:4100", line(own, "0A", 1000), Listener::Stranger(1000)),
            ("http://127.0.0.1", line("0100007F:0050", "0A", 1000), Listener::Stranger(1000)),
            ("http://10.0.0.1:4100", line(own, "0A", 0), Listener::Elsewhere),
            ("https://example.org", line(own, "0A", 0), Listener::Elsewhere),
            ("http://localhost.example.org:4100", line(own, "0A", 0), Listener::Elsewhere),
            ("http://127.0.0.1@example.org:4100", line(own, "0A", 0), Listener::Elsewhere),
        ] {
            assert_eq!(judge(url, &table, 999), wanted, "{url} {table}");
        }
    }
}

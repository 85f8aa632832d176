//! The key that ashd wrote at its first start, and to whom it is shown.
//!
//! ```text
//!   --key, ASH_API_KEY          to whatever --url names
//!   no --url                    /run/ashd/ashd.sock, by who the caller is: no key goes anywhere
//!   <data dir>/initial-api-key  to ashd on this host alone: its unix socket, or a loopback port on which root or ashd listens
//! ```
//!
//! While ashd is down any user of the host can listen on its port, and would be told the admin's key by the next command of root.

use std::path::Path;

use hyper::Uri;

use super::cli::{Cli, URL};
use super::{CtlError, unix};
use ash_kernel::tree::Tree;

/// Bytes of a file that holds one key.
const MOST: u64 = 4096;
/// State of a socket that listens, in /proc/net/tcp.
const LISTENS: &str = "0A";

/// Where requests go, and the key they carry.
///
/// # Errors
/// [`CtlError::Usage`] when the first key would go to another host or to a stranger of this one.
pub fn choose(cli: &Cli) -> Result<(String, Option<String>), CtlError> {
    if let Some(key) = cli.key.clone().filter(|key| !key.is_empty()) {
        return Ok((cli.url.clone(), Some(key)));
    }
    // Whoever has no key may be let in by who he is.
    if cli.url == URL && unix::is_open(unix::SOCKET) {
        return Ok((format!("unix:{}", unix::SOCKET), None));
    }
    let Some((key, owner)) = read(&cli.data_dir) else { return Ok((cli.url.clone(), None)) };
    if unix::path_of(&cli.url).is_some() {
        return Ok((cli.url.clone(), Some(key)));
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    match judge(&cli.url, &tables.concat(), owner) {
        // Nothing is sent where nobody listens; the error says that ashd cannot be reached.
        Listener::Trusted | Listener::None => Ok((cli.url.clone(), Some(key))),
        Listener::Elsewhere => Err(CtlError::Usage(format!(
            "{} is not on this host's loopback, and the key in {} is for this host's ashd alone: name the key with --key or ASH_API_KEY",
            cli.url,
            cli.data_dir.display()
        ))),
        Listener::Stranger(uid) => Err(CtlError::Usage(format!(
            "uid {uid} listens at {}, which is neither root nor uid {owner} of ashd: the key in {} is not sent there. Is ashd running? \
             See `ss -ltnp`; another address goes in --url",
            cli.url,
            cli.data_dir.display()
        ))),
    }
}

/// The key and the uid that owns it. ashd may put a link there, and is told what is read: only a file of its own counts.
fn read(data_dir: &Path) -> Option<(String, u32)> {
    let data = Tree::open(data_dir).ok()?;
    let text = String::from_utf8(data.read("initial-api-key", MOST).ok()?).ok()?;
    let key = text.trim().to_owned();
    (!key.is_empty()).then_some((key, data.owner().uid))
}

#[derive(Debug, PartialEq, Eq)]
enum Listener {
    /// Root's (systemd, or a start as root) or ashd's own.
    Trusted,
    None,
    Stranger(u32),
    /// Not on the loopback of this host, or in a way that cannot be looked up.
    Elsewhere,
}

/// Who listens at the URL, by the text of /proc/net/tcp and tcp6.
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
        // Number, own address, other address, state, queues, timer, retransmissions, uid, ...
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, own, _, state, _, _, _, uid, ..] = fields[..] else { continue };
        if state != LISTENS || !own.ends_with(&suffix) {
            continue;
        }
        match uid.parse::<u32>() {
            Ok(uid) if uid == 0 || uid == owner => found = Listener::Trusted,
            // Whatever address of the host it is on: which of them the connection reaches is not worth a key.
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

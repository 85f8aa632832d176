//! Reads and parses facts about a process from /proc, without a judgement.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::Measured;

/// The five sets, as 16 hexadecimal digits of /proc/self/status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = ConfinementCapabilities))]
pub struct Capabilities {
    pub inheritable: String,
    pub permitted: String,
    pub effective: String,
    pub bounding: String,
    pub ambient: String,
}

impl Capabilities {
    pub fn none(&self) -> bool {
        [&self.inheritable, &self.permitted, &self.effective, &self.bounding, &self.ambient]
            .iter()
            .all(|set| !set.is_empty() && set.bytes().all(|digit| digit == b'0'))
    }
}

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = ConfinementMount))]
pub struct Mount {
    #[cfg_attr(feature = "schema", schema(example = "/usr"))]
    pub path: String,
    #[cfg_attr(feature = "schema", schema(example = "ext4"))]
    pub kind: String,
    #[cfg_attr(feature = "schema", schema(example = "ro,nosuid,nodev,relatime"))]
    pub options: String,
}

impl Mount {
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|word| word == option)
    }
}

/// Collects everything except the attempts. Unreadable values are empty, which never counts as
/// confinement.
pub fn collect() -> Measured {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let names = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup", "time"];
    let inode = |name: &&str| fs::metadata(format!("/proc/self/ns/{name}")).map(|meta| meta.ino());
    Measured {
        landlock_abi: crate::landlock::abi().unwrap_or(0),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: field(&status, "Groups").split_whitespace().filter_map(|id| id.parse().ok()).collect(),
        uid_map: map(&read("/proc/self/uid_map")),
        gid_map: map(&read("/proc/self/gid_map")),
        capabilities: Capabilities {
            inheritable: field(&status, "CapInh").to_owned(),
            permitted: field(&status, "CapPrm").to_owned(),
            effective: field(&status, "CapEff").to_owned(),
            bounding: field(&status, "CapBnd").to_owned(),
            ambient: field(&status, "CapAmb").to_owned(),
        },
        no_new_privs: field(&status, "NoNewPrivs") == "1",
        seccomp_mode: field(&status, "Seccomp").parse().unwrap_or(0),
        seccomp_filters: field(&status, "Seccomp_filters").parse().unwrap_or(0),
        namespaces: names.iter().filter_map(|name| Some(((*name).to_owned(), inode(name).ok()?))).collect(),
        cgroups: read("/proc/self/cgroup").lines().map(str::to_owned).collect(),
        mounts: read("/proc/self/mountinfo").lines().filter_map(mount).collect(),
        interfaces: interfaces(&read("/proc/net/dev")),
        listeners: all_listeners(),
        probes: Vec::new(),
        micros: 0,
    }
}

/// Reading a table costs 1.6 ms even if it is empty (24 GB of memory). The socket count costs
/// nothing.
fn all_listeners() -> Vec<String> {
    let tables = [("/proc/net/sockstat", "TCP", "/proc/net/tcp"), ("/proc/net/sockstat6", "TCP6", "/proc/net/tcp6")];
    let mut all = Vec::new();
    for (counts, protocol, table) in tables {
        // If the count is unreadable, the table is read.
        if in_use(&fs::read_to_string(counts).unwrap_or_default(), protocol) != Some(0) {
            all.extend(listeners(&at_once(table)));
        }
    }
    all
}

/// `TCP: inuse 5 orphan 0 ...`: sockets of this network namespace.
fn in_use(counts: &str, protocol: &str) -> Option<u64> {
    let line = counts.lines().find_map(|line| line.strip_prefix(protocol)?.strip_prefix(": inuse "))?;
    line.split(' ').next()?.parse().ok()
}

/// Each read of these files walks the kernel's whole connection table, so one large read is used.
fn at_once(path: &str) -> String {
    use std::io::Read;
    let mut buffer = vec![0; 256 << 10];
    let len = fs::File::open(path).and_then(|mut file| file.read(&mut buffer)).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

fn field<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map_or("", str::trim)
}

fn map(text: &str) -> Vec<[u32; 3]> {
    let line = |line: &str| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        <[u32; 3]>::try_from(numbers).ok()
    };
    text.lines().filter_map(line).collect()
}

/// proc_pid_mountinfo(5): id, parent, device, root, path, options, optional fields, `-`, type, ...
fn mount(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut words = head.split(' ').skip(4);
    let (path, options) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some(Mount { path, options, kind: tail.split(' ').next()?.to_owned() })
}

fn interfaces(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

/// Addresses in state LISTEN (0A) of /proc/net/tcp and tcp6. Their words are in the host's byte
/// order.
fn listeners(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = words.get(1)?.split_once(':')?;
        if *words.get(3)? != "0A" {
            return None;
        }
        let port = u16::from_str_radix(port, 16).ok()?;
        let mut octets = Vec::new();
        for word in 0..address.len() / 8 {
            let word = u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok()?;
            octets.extend(word.to_ne_bytes());
        }
        let ip: std::net::IpAddr = match octets.len() {
            4 => <[u8; 4]>::try_from(octets).ok()?.into(),
            _ => <[u8; 16]>::try_from(octets).ok()?.into(),
        };
        Some(std::net::SocketAddr::from((ip, port)).to_string())
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc() {
        assert_eq!(map("      1000 1900000000          1\n 999 5 1\n"), [[1000, 1_900_000_000, 1], [999, 5, 1]]);
        let line = "612 600 254:0 /usr /usr ro,nosuid,nodev,relatime master:1 - ext4 /dev/vda rw";
        let found = mount(line).unwrap();
        assert_eq!(
            (found.path.as_str(), found.kind.as_str(), found.has("nosuid"), found.has("suid")),
            ("/usr", "ext4", true, false)
        );
        assert_eq!(interfaces("Inter-|\n face |bytes\n    lo:  0 0\n  eth0: 1\n"), ["lo", "eth0"]);
        let tcp = "  sl  local\n   0: 0100007F:1054 00000000:0000 0A 0:0\n   1: 0100007F:1054 0100007F:1 01 0:0\n";
        assert_eq!(listeners(tcp), ["127.0.0.1:4180"]);
    }

    #[test]
    fn sockets_in_use() {
        let counts = "sockets: used 3\nTCP: inuse 2 orphan 0 tw 0 alloc 9 mem 0\nUDP: inuse 0 mem 0\n";
        assert_eq!((in_use(counts, "TCP"), in_use(counts, "UDP"), in_use(counts, "TCP6")), (Some(2), Some(0), None));
        assert_eq!(in_use("TCP6: inuse 0\n", "TCP"), None);
    }

    #[test]
    fn an_unreadable_set_is_not_an_empty_one() {
        assert!(!Capabilities::default().none());
        let zero = "0".repeat(16);
        let mut sets = Capabilities {
            inheritable: zero.clone(),
            permitted: zero.clone(),
            effective: zero.clone(),
            bounding: zero.clone(),
            ambient: zero,
        };
        assert!(sets.none());
        sets.bounding = "0000000000000001".to_owned();
        assert!(!sets.none());
    }

    #[test]
    fn this_process_is_measured_too() {
        let measured = collect();
        assert!(
            measured.namespaces.len() >= 7
                && !measured.mounts.is_empty()
                && measured.interfaces.contains(&"lo".to_owned())
        );
    }
}

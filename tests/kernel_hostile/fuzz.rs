//! Random requests with ashd's uid: cases that the launcher's table of malformed requests misses.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ash_kernel::{pidfd, seqpacket};
use ash_model::Limits;
use ash_protocol::launcher::{MAX_PACKET, Reply};

use crate::host::{Host, patient};

const PACKETS: usize = 20_000;

/// xorshift64*: small, and the same on every run, so that failures can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("fits")
    }
}

/// Replacements for words: paths, limits of numbers, keys of other requests, broken JSON.
const WORDS: [&str; 26] = [
    "\"../../../etc\"",
    "\"/etc/passwd\"",
    "\"..\"",
    "\"\"",
    "-1",
    "18446744073709551615",
    "1e400",
    "null",
    "[]",
    "{}",
    "\"op\"",
    "\"create\"",
    "\"destroy\"",
    "\"shutdown_\"",
    "\"set_limits\"",
    "\"victims\"",
    "\"held\"",
    "\"configured\"",
    "{\"version\":\"../../..\"}",
    "\"uid\":0",
    "\"path\":\"/\"",
    "\\u0000",
    "\"\u{202e}\"",
    ",",
    "}",
    "\"tenants/../..\"",
];

fn mutated(valid: &str, random: &mut Random) -> Vec<u8> {
    let mut bytes = valid.as_bytes().to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            2 => {
                let word = WORDS[random.below(WORDS.len())].as_bytes();
                bytes.splice(at..at, word.iter().copied());
            }
            3 => {
                let end = (at + random.below(12)).min(bytes.len());
                let word = WORDS[random.below(WORDS.len())].as_bytes();
                bytes.splice(at..end, word.iter().copied());
            }
            4 => bytes.extend_from_within(at..),
            5 => bytes = (0..random.below(300)).map(|_| (random.next() & 0xFF) as u8).collect(),
            _ => {
                let (key, rest) = bytes.split_at(at);
                bytes = [rest, key].concat();
            }
        }
        if bytes.is_empty() {
            bytes.push(b'{');
        }
    }
    bytes
}

fn reply(socket: &OwnedFd) -> Option<Reply> {
    let mut buffer = vec![0; MAX_PACKET];
    pidfd::wait_readable(socket.as_fd(), patient(Duration::from_secs(20))).expect("the launcher answers or closes");
    let len = seqpacket::recv(socket.as_fd(), &mut buffer).map_or(0, |packet| packet.len);
    (len > 0).then(|| serde_json::from_slice(&buffer[..len]).expect("a reply is well formed"))
}

#[tokio::test]
async fn the_launcher_outlives_random_requests() {
    let host = Host::start("fuzz");
    let launcher = host.client().await;
    let kept = host.sandbox(&launcher, Limits::default()).await;
    let (kept_id, spare, pid) = (kept.id(), host.session(), host.pid());
    let limits = serde_json::to_string(&Limits::default()).expect("plain data");
    let absent = uuid::Uuid::nil();
    let valid = [
        "{\"op\":\"hello\"}".to_owned(),
        "{\"op\":\"list\"}".to_owned(),
        format!("{{\"op\":\"attach\",\"id\":\"{absent}\"}}"),
        format!("{{\"op\":\"destroy\",\"id\":\"{absent}\"}}"),
        format!("{{\"op\":\"victims\",\"id\":\"{kept_id}\"}}"),
        format!("{{\"op\":\"held\",\"id\":\"{absent}\"}}"),
        format!("{{\"op\":\"set_limits\",\"id\":\"{kept_id}\",\"limits\":{limits}}}"),
        format!(
            "{{\"op\":\"create\",\"id\":\"{spare}\",\"tenant\":\"t\",\"limits\":{limits},\"claude\":{{\"version\":\"test\"}}}}"
        ),
    ];
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the launcher lives").count();
    let before = open();
    let mut random = Random(0x00A5_1234_5678_9ABC);
    let null: OwnedFd = std::fs::File::open("/dev/null").expect("null").into();
    let connect = || seqpacket::connect(&host.run_dir().join("launcher.sock"), false).expect("it takes connections");
    let (mut socket, mut answered, mut closed, mut made) = (connect(), 0, 0, 0);
    for _ in 0..PACKETS {
        let packet = mutated(&valid[random.below(valid.len())], &mut random);
        let stray = vec![null.as_fd(); if random.below(10) == 0 { random.below(8) } else { 0 }];
        if seqpacket::send(socket.as_fd(), &packet, &stray).is_err() {
            socket = connect();
            continue;
        }
        match reply(&socket) {
            None => {
                closed += 1;
                socket = connect();
            }
            Some(Reply::Sandbox(info)) => {
                // A mutation that left the request valid: its result is within the configuration.
                assert!([kept_id, spare].contains(&info.id), "{info:?}");
                assert!(host.uids().contains(&info.uid) && host.uids().contains(&info.init_uid), "{info:?}");
                assert!(info.limits.pids <= 1000, "the ceiling holds: {info:?}");
                launcher.destroy(spare).await.expect("destroyed");
                made += 1;
            }
            Some(_) => answered += 1,
        }
    }
    println!("{PACKETS} packets: {answered} answered, {closed} connections closed, {made} sandboxes made and ended");
    assert!(answered > PACKETS / 2, "most are answered with an error, not with a closed connection");
    drop(socket);
    crate::host::wait_for("descriptors to be closed", || open() <= before + 1);
    assert_eq!(host.pid(), pid);
    let listed: Vec<_> = launcher.list().await.expect("it serves").into_iter().map(|info| info.id).collect();
    assert_eq!(listed, [kept_id], "the one sandbox there was, and no other");
    let mut events = kept.take_events().expect("events");
    let (_, said) = crate::host::run(&kept, &mut events, 1, "echo alive").await;
    assert_eq!(said, "alive\n");
    launcher.destroy(kept_id).await.expect("destroyed");
}

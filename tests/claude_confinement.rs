//! What a session can see and do, with the real Claude Code: inspected from the host, and tried
//! from inside.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use common::procs::{self, Proc};
use common::{Api, Daemon, Options};

/// A realistic key, which must not be found in any sandbox.
const PLANTED: &str = "sk-ant-api03-planted-7f3c1d5e9b2a4680-AA";

async fn session(daemon: &Daemon) -> (Api, String) {
    let api = daemon.api();
    api.deploy("a").await;
    let id = api.session("a").await;
    (api, id)
}

async fn bash(api: &Api, id: &str, command: &str) -> String {
    let script = format!("@tool Bash {}\n@text ok", serde_json::json!({ "command": command }));
    let frames = api.turn(id, &script).await;
    let result = frames.iter().find(|f| f.event == "tool_result").expect("a tool result");
    match &result.data["content"] {
        serde_json::Value::String(text) => text.clone(),
        other => other[0]["text"].as_str().unwrap_or_default().to_owned(),
    }
}

fn own() -> Proc {
    Proc { pid: i32::try_from(std::process::id()).unwrap(), name: String::new() }
}

#[tokio::test]
async fn every_process_of_a_session_is_confined() {
    let daemon = Daemon::start(Options::default().real_claude());
    let (api, id) = session(&daemon).await;
    // During a turn, with a running command of the agent.
    let script = "@tool Bash {\"command\":\"tail -f /dev/null\"}";
    let mut turn = api.send(&id, serde_json::json!({"content": script})).await;
    turn.until("tool_use").await;
    let start = std::time::Instant::now();
    let all = loop {
        let all = procs::of_session(&daemon, &id);
        if all.iter().any(|p| p.name == "tail") {
            break all;
        }
        assert!(start.elapsed().as_secs() < 10, "no tail among {all:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let claude = procs::claude(&daemon, &id);
    let init = all.iter().find(|p| p.status("NSpid").ends_with(" 1")).expect("an init");
    for process in &all {
        let uids = process.status("Uid");
        let uid: u32 = uids.split(' ').next().unwrap().parse().unwrap();
        assert!(uid >= 1_000_000, "{process:?} runs as host uid {uid}");
        assert_eq!(uids, [uid.to_string().as_str(); 4].join(" "), "{process:?}");
        for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            assert_ne!(process.namespace(kind), own().namespace(kind), "{process:?} shares the host's {kind}");
        }
        if process == init {
            assert_ne!(uids, claude.status("Uid"), "init and its payload are one user");
            continue;
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(process.status(set), "0000000000000000", "{set} of {process:?}");
        }
        assert_eq!(process.status("NoNewPrivs"), "1", "{process:?}");
        assert_eq!(process.status("Seccomp"), "2", "{process:?}");
        assert_eq!(process.status("Groups"), "", "{process:?} has supplementary groups");
    }
    // ashd itself has no privilege either.
    let ashd = Proc { pid: i32::try_from(daemon.pid()).unwrap(), name: String::new() };
    assert!(!ashd.status("Uid").starts_with("0 "), "ashd runs as root");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(ashd.status(set), "0000000000000000", "{set} of ashd");
    }
}

#[tokio::test]
async fn the_network_holds_nothing_but_the_gateways_port() {
    let daemon = Daemon::start(Options::default().real_claude());
    let (api, id) = session(&daemon).await;
    let claude = procs::claude(&daemon, &id);
    let devices: Vec<String> =
        claude.read("net/dev").lines().skip(2).map(|l| l.split(':').next().unwrap().trim().to_owned()).collect();
    assert_eq!(devices, ["lo"]);
    assert_eq!(claude.read("net/route").lines().count(), 1, "no route: {}", claude.read("net/route"));
    // Column 3 is the state, 0A is LISTEN; 1054 is the port 4180.
    let listening: Vec<String> = claude
        .read("net/tcp")
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("0A"))
        .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(listening, ["0100007F:1054"]);
    for target in ["127.0.0.1/22", "1.1.1.1/443", "169.254.169.254/80", &format!("127.0.0.1/{}", daemon.port)] {
        let said = bash(&api, &id, &format!("(exec 3<>/dev/tcp/{target}) 2>&1 && echo CONNECTED")).await;
        assert!(!said.contains("CONNECTED") && !said.is_empty(), "{target}: {said}");
    }
    // The same command reaches an allowed address: it can succeed.
    let said = bash(&api, &id, "(exec 3<>/dev/tcp/127.0.0.1/4180) 2>&1 && echo CONNECTED").await;
    assert_eq!(said, "CONNECTED");
}

#[tokio::test]
async fn nothing_of_the_host_is_in_sight() {
    let daemon = Daemon::start(Options::default().real_claude());
    let secret = daemon.dir.join("host-secret");
    fs::write(&secret, "of the host").unwrap();
    let (api, id) = session(&daemon).await;
    let other = api.session("a").await;
    bash(&api, &other, "echo private > note.txt").await;
    let outside = [
        secret.display().to_string(),
        "/etc/shadow".to_owned(),
        "/root/.profile".to_owned(),
        "/var/lib".to_owned(),
        daemon.data().display().to_string(),
        daemon.run().display().to_string(),
        "/proc/1/environ".to_owned(),
        "/proc/1/root/etc".to_owned(),
        "/sys/fs/cgroup".to_owned(),
    ];
    for path in outside {
        let said =
            bash(&api, &id, &format!("(ls -a {path} && cat {path}) >/dev/null 2>&1 && echo SEEN || echo hidden")).await;
        assert_eq!(said, "hidden", "{path}");
    }
    let pids = bash(&api, &id, "ls /proc | grep -c '^[0-9]*$'").await;
    assert!(pids.trim().parse::<u32>().unwrap() < 12, "{pids} processes in sight");
    for attempt in [
        "touch /usr/x",
        "mount -t tmpfs none /tmp",
        "unshare -U true",
        "kill -0 1",
        "chroot / true",
        "mknod /tmp/n c 1 1",
        "su -c true",
        "find / -name note.txt 2>/dev/null | grep -q .",
    ] {
        let said = bash(&api, &id, &format!("{attempt} >/dev/null 2>&1 && echo DONE || echo refused")).await;
        assert_eq!(said, "refused", "{attempt}");
    }
    let said =
        bash(&api, &id, "echo x > /tmp/x && cat /tmp/x && git init -q r && python3 -c 'print(6*7)'; ls -d r").await;
    assert!(said.starts_with('x') && said.ends_with('r'), "what must work does not: {said}");
}

/// Whether the bytes occur in the memory of the process, except in unchanged file pages.
fn memory_holds(process: &Proc, bytes: &[u8]) -> bool {
    let memory = fs::File::open(process.dir().join("mem")).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut range = None;
    for line in process.read("smaps").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((from, to)) = words[0].split_once('-') {
            let of_file = words[4] != "0" && !words[1].contains('w');
            range = (words[1].starts_with('r') && !of_file).then(|| {
                let address = |text| u64::from_str_radix(text, 16).expect("an address");
                (address(from), address(to))
            });
        } else if words[0] == "Rss:"
            && words[1] != "0"
            && let Some((from, to)) = range
            && range_holds(&memory, &mut buffer, (from, to), bytes)
        {
            return true;
        }
    }
    false
}

fn range_holds(memory: &fs::File, buffer: &mut [u8], (from, to): (u64, u64), bytes: &[u8]) -> bool {
    let mut at = from;
    while at < to {
        let want = usize::try_from(to - at).unwrap().min(buffer.len());
        let Ok(n) = memory.read_at(&mut buffer[..want], at) else { return false };
        if n == 0 {
            return false;
        }
        if memchr::memmem::find(&buffer[..n], bytes).is_some() {
            return true;
        }
        // Chunks overlap, so that no occurrence is split; the last chunk has no successor.
        let step = if n > bytes.len() && at + (n as u64) < to { n - bytes.len() } else { n };
        at += step as u64;
    }
    false
}

#[tokio::test]
async fn the_model_key_is_nowhere_in_a_sandbox() {
    let daemon = Daemon::start(Options::default().real_claude().env("ANTHROPIC_API_KEY", PLANTED));
    let (api, id) = session(&daemon).await;
    let said = bash(&api, &id, "env; cat /proc/self/environ").await;
    assert!(said.contains("ANTHROPIC_API_KEY") && !said.contains(PLANTED), "{said}");
    // The search finds what is there: claude's own token.
    let claude = procs::claude(&daemon, &id);
    let environ = claude.read("environ");
    let token = environ.split('\0').find_map(|v| v.strip_prefix("ANTHROPIC_API_KEY=")).expect("a token").to_owned();
    assert!(memory_holds(&claude, token.as_bytes()), "the search of memory does not work");
    for process in procs::of_session(&daemon, &id) {
        for file in ["environ", "cmdline"] {
            assert!(!process.read(file).contains(PLANTED), "{file} of {process:?}");
        }
        assert!(!memory_holds(&process, PLANTED.as_bytes()), "the memory of {process:?} holds the key");
    }
    // Not in ashd either, nor in any of its files.
    let ashd = Proc { pid: i32::try_from(daemon.pid()).unwrap(), name: "ashd".to_owned() };
    assert!(!ashd.read("environ").contains(PLANTED) && !memory_holds(&ashd, PLANTED.as_bytes()), "ashd holds the key");
    for file in
        walkdir::WalkDir::new(&daemon.dir).into_iter().filter_map(Result::ok).filter(|e| e.file_type().is_file())
    {
        let bytes = fs::read(file.path()).unwrap_or_default();
        assert!(memchr::memmem::find(&bytes, PLANTED.as_bytes()).is_none(), "{} holds the key", file.path().display());
    }
}

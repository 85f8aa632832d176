//! A workspace that changes while the files API works in it: the payload exchanges directories,
//! links, FIFOs and files as fast as it can, so that a checked path is another one when it is
//! opened.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::{Daemon, Options};
use serde_json::json;

/// Must not appear in any answer.
const SECRET: &str = "SECRET-OF-THE-HOST-7261";
/// Time for each form of the API.
const EACH: Duration = Duration::from_secs(3);

/// Exchanges `race/f` and `leaf` for links to the first argument. `seen` counts the rounds.
const RACER: &str = r#"
import ctypes, os, sys
out = sys.argv[1]
libc = ctypes.CDLL(None)
def exchange(a, b): libc.renameat2(-100, a.encode(), -100, b.encode(), 2)
os.chdir('/workspace')
for d in ('race', 'deep/er/race'):
    os.makedirs(d); open(d + '/f', 'w').write('inside'); open(d + '/x', 'w').write('inside')
os.symlink(out, 'link'); os.symlink(out, 'deep/er/link')
open('leaf', 'w').write('inside')
os.symlink(out + '/f', 'leaf.link'); os.mkfifo('leaf.fifo'); os.mkdir('leaf.dir')
open('ready', 'w').write('yes')
n = 0
while True:
    exchange('race', 'link'); exchange('deep/er/race', 'deep/er/link')
    exchange('leaf', 'leaf.link')
    if n % 3 == 0: exchange('leaf', 'leaf.fifo')
    if n % 5 == 0: exchange('leaf', 'leaf.dir')
    n += 1
    if n % 1000 == 0:
        with open('/tmp/n', 'w') as f: f.write(str(n))
"#;

#[tokio::test]
async fn a_workspace_that_changes_under_the_files_api_leads_nowhere() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    // Everyone may read and write there: only the path rules protect it.
    let outside = daemon.dir.join("outside");
    std::fs::create_dir(&outside).unwrap();
    for name in ["f", "x"] {
        std::fs::write(outside.join(name), SECRET).unwrap();
        std::fs::set_permissions(outside.join(name), std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o777)).unwrap();
    let encoded = base64(RACER.as_bytes());
    let body = json!({"files": [{"path": "racer.py", "content": encoded}]});
    api.post(&format!("/api/sessions/{id}/files"), body).await.expect(200);
    let start =
        format!("setsid python3 /workspace/racer.py {} >/dev/null 2>/workspace/errors </dev/null &", outside.display());
    api.turn(&id, &format!("@tool Bash {}", json!({"command": start}))).await;
    let files = format!("/api/sessions/{id}/files");
    let began = Instant::now();
    while api.get(&format!("{files}/ready")).await.status != 200 {
        assert!(
            began.elapsed() < crate::common::patience::patient(Duration::from_secs(20)),
            "{}",
            api.get(&format!("{files}/errors")).await.text
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let (mut inside, mut refused) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < EACH {
        for path in ["race/f", "deep/er/race/f", "leaf", "link/f"] {
            let answer = api.get(&format!("{files}/{path}")).await;
            assert!(!answer.text.contains(SECRET), "{path} led outside: {}", answer.text);
            assert!(answer.status < 500, "{path}: {}", answer.text);
            if answer.status == 200 { inside += 1 } else { refused += 1 }
        }
    }
    println!("read: {inside} times the workspace's own file, {refused} times refused");
    assert!(inside > 10 && refused > 10, "the race was not run: {inside} and {refused}");

    let began = Instant::now();
    let (mut written, mut kept) = (0, 0);
    while began.elapsed() < EACH {
        let planted = json!({"files": [
            {"path": "race/planted", "content": "AAAA"}, {"path": "race/f", "content": "AAAA"},
            {"path": "deep/er/race/planted", "content": "AAAA"}, {"path": "leaf", "content": "AAAA"},
        ]});
        let answer = api.post(&files, planted).await;
        assert!(answer.status < 500, "{}", answer.text);
        for file in answer.json["files"].as_array().into_iter().flatten() {
            if file["written"] == true { written += 1 } else { kept += 1 }
        }
        let deleted = api.delete(&format!("{files}/race/x")).await;
        assert!(deleted.status < 500, "{}", deleted.text);
    }
    println!("written: {written} times inside, {kept} times refused");
    assert!(written > 10, "nothing was ever written");

    let began = Instant::now();
    while began.elapsed() < EACH {
        let list = api.get(&files).await;
        assert!(list.status == 200 && !list.text.contains("outside"), "{}", list.text);
        let bundle = api.get(&format!("/api/sessions/{id}/workspace")).await;
        assert!(bundle.status < 500 && !bundle.text.contains(SECRET), "{}", bundle.status);
    }

    let mut left: Vec<_> =
        std::fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["f", "x"], "nothing was made or removed outside");
    for name in ["f", "x"] {
        assert_eq!(std::fs::read_to_string(outside.join(name)).unwrap(), SECRET, "nothing was written outside");
    }
    assert_eq!(api.get("/health").await.expect(200)["status"], "ok");
}

/// Shapes that are cheap to create and expensive for others: holes, depth, numbers, odd names.
const SHAPES: &str = r#"
import os
os.chdir('/workspace')
with open('hole', 'wb') as f: f.truncate(10 << 40)
os.makedirs('many')
for n in range(60000): open(f'many/{n}', 'w').close()
fd = os.open('.', os.O_RDONLY)
for n in range(600):
    os.mkdir('d', dir_fd=fd); fd, old = os.open('d', os.O_RDONLY, dir_fd=fd), fd; os.close(old)
for name in (b'\xff\xfe', b'new\nline', b'"quote', b'\xe2\x80\xa8', b'x' * 255):
    open(name, 'w').close()
print('made')
"#;

#[tokio::test]
async fn shapes_that_cost_nothing_do_not_stop_the_files_api() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let files = format!("/api/sessions/{id}/files");
    let body = json!({"files": [{"path": "shapes.py", "content": base64(SHAPES.as_bytes())}]});
    api.post(&files, body).await.expect(200);
    let frames = api.turn(&id, "@tool Bash {\"command\": \"python3 shapes.py\"}").await;
    assert!(format!("{frames:?}").contains("made"), "{frames:?}");
    let began = Instant::now();
    let list = api.get(&files).await;
    assert!(
        list.status == 200 && list.json["files"].as_array().is_some_and(|all| all.len() <= 50_000),
        "{}",
        list.status
    );
    for path in ["hole", "hole?format=json"] {
        let answer = api.get(&format!("{files}/{path}")).await;
        assert_eq!(answer.status, 413, "{path}: {:.200}", answer.text);
    }
    assert_eq!(api.get(&format!("{files}/{}", "d/".repeat(600))).await.status, 400);
    api.delete(&format!("{files}/many?recursive=true")).await.expect(200);
    // More requests than concurrent downloads allowed: the last is served like the first. A hole of
    // 10 TiB costs nothing, and entries nested too deep are listed.
    for _ in 0..10 {
        let answer = api.open("GET", &format!("/api/sessions/{id}/workspace"), None).await;
        assert_eq!(answer.status(), 200);
        let left_out = answer.headers()["x-ash-skipped"].to_str().unwrap().to_owned();
        assert!(left_out.contains("more than 128 directories deep"), "{left_out}");
        let whole = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a whole archive").to_bytes();
        assert!(whole.len() < 32 << 20, "{} bytes", whole.len());
    }
    assert!(began.elapsed() < crate::common::patience::patient(Duration::from_secs(60)), "{:?}", began.elapsed());
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

//! Commands of clients beside claude (`POST /api/sessions/:id/exec`), and the files API on a
//! changing workspace.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::api::{Answer, Api, text};
use common::{Daemon, Options};
use serde_json::{Value, json};

async fn ask(api: &Api, id: &str, body: Value) -> Answer {
    api.post(&format!("/api/sessions/{id}/exec"), body).await
}

async fn exec(api: &Api, id: &str, command: &str) -> Value {
    ask(api, id, json!({"command": command})).await.expect(200)
}

fn with_argument(mark: &str) -> usize {
    let holds = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        memchr::memmem::find(&line, mark.as_bytes()).is_some()
    };
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter(holds).count()
}

#[tokio::test]
async fn a_command_answers_with_its_own_output_and_code() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let made = api.post("/api/sessions", json!({"agent": "a", "extraEnv": {"PLANTED": "here"}})).await.expect(201);
    let id = made["session"]["id"].as_str().unwrap();

    let ended = exec(&api, id, "pwd; echo $PLANTED $USER; id -u; echo oops >&2; exit 3").await;
    assert_eq!(ended, json!({"exitCode": 3, "stdout": "/workspace\nhere agent\n1000\n", "stderr": "oops\n"}));
    for (command, code, out) in [
        ("true", 0, ""),
        ("no-such-command-here", 127, ""),
        ("kill -9 $$", 137, ""),
        ("cat; echo after", 0, "after\n"),
        ("echo x > /dev/stdout; echo y | tee /dev/stderr", 0, "x\ny\n"),
        ("printf 'a\\xffb'", 0, "a\u{fffd}b"),
        ("echo made > f.txt; cat CLAUDE.md f.txt", 0, "You are a test.\nmade\n"),
        // claude's environment with the placeholder of the model's key, and nothing of the
        // daemon's.
        (
            "echo $ANTHROPIC_BASE_URL $HOME $ASH_WORKSPACE_DIR; env | grep -c '^ASH_'",
            0,
            "http://127.0.0.1:4180 /home/agent /workspace\n3\n",
        ),
        // Answered when the command ends, even if another process still holds its output.
        ("sleep 5 & echo quick", 0, "quick\n"),
    ] {
        let began = Instant::now();
        let ended = exec(&api, id, command).await;
        assert_eq!(
            (ended["exitCode"].as_i64(), ended["stdout"].as_str()),
            (Some(code), Some(out)),
            "{command}: {ended}"
        );
        assert!(began.elapsed() < crate::common::patience::patient(Duration::from_secs(4)), "{command}");
    }
    assert_eq!(api.get(&format!("/api/sessions/{id}/files/f.txt")).await.text, "made\n");
}

#[tokio::test]
async fn bad_commands_and_sessions_that_do_not_run_are_refused() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    for (body, part) in [
        (json!({}), "command is required"),
        (json!({"command": ""}), "command is required"),
        (json!({"command": 5}), "command must be a string"),
        (json!({"command": "a\u{0}b"}), "NUL"),
        (json!({"command": "x".repeat(200_000)}), "too long"),
        (json!({"command": "true", "timeout": 0}), "timeout must be milliseconds from 1 to 300000, not 0"),
        (json!({"command": "true", "timeout": 300_001}), "300001"),
        (json!({"command": "true", "timeout": "1"}), "timeout must be"),
    ] {
        let error = ask(&api, &id, body.clone()).await.expect(400);
        assert!(error["error"].as_str().unwrap().contains(part), "{body}: {error}");
    }
    let other = "00000000-0000-4000-8000-000000000000";
    assert_eq!(ask(&api, other, json!({"command": "true"})).await.expect(404)["error"], "Session not found");
    for (verb, status) in [("pause", "paused"), ("resume", "active"), ("stop", "stopped")] {
        api.call("POST", &format!("/api/sessions/{id}/{verb}"), None).await.expect(200);
        let answer = ask(&api, &id, json!({"command": "echo x"})).await;
        if status == "active" {
            assert_eq!(answer.expect(200)["stdout"], "x\n");
        } else {
            assert_eq!(answer.expect(400)["error"], format!("Session is {status}"));
        }
    }
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!(ask(&api, &id, json!({"command": "true"})).await.expect(400)["error"], "Session is ended");
}

#[tokio::test]
async fn a_timeout_ends_the_whole_tree_and_nothing_else() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let mut turn =
        api.send(&id, json!({"content": "@text begun\n@wait 3s\n@text done", "includePartialMessages": true})).await;
    turn.until("text_delta").await;
    // A number that no other test's sleep uses.
    let nap = format!("9{}", std::process::id());
    let command = format!(
        "echo first; setsid sleep {nap} & setsid -f bash -c 'trap \"\" TERM; (setsid sleep {nap} &); sleep {nap}'; sleep {nap}"
    );
    let began = Instant::now();
    let ended = ask(&api, &id, json!({"command": command, "timeout": 600})).await.expect(200);
    assert!(began.elapsed() < crate::common::patience::patient(Duration::from_secs(5)), "{:?}", began.elapsed());
    assert_eq!(
        (&ended["exitCode"], &ended["stdout"], &ended["timedOut"]),
        (&json!(124), &json!("first\n"), &json!(true))
    );
    let note = ended["stderr"].as_str().unwrap();
    assert!(note.contains("timeout") && note.contains("after 600 ms"), "{note}");
    assert_eq!(with_argument(&nap), 0, "a process of the command is left");
    assert_eq!(text(&turn.rest().await), "done", "the turn beside it was not touched");
}

#[tokio::test]
async fn forty_commands_at_once_beside_a_turn_each_get_their_own_answer() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let mut turn =
        api.send(&id, json!({"content": "@delay 20ms\n@repeat 50 word", "includePartialMessages": true})).await;
    turn.until("text_delta").await;
    let asked = (0..40).map(|n| {
        let (api, id) = (api.clone(), id.clone());
        tokio::spawn(async move {
            let command =
                format!("for i in 1 2 3; do echo out-{n}; echo err-{n} >&2; sleep 0.0{}; done; exit {n}", n % 7);
            (n, exec(&api, &id, &command).await)
        })
    });
    for task in asked.collect::<Vec<_>>() {
        let (n, ended) = task.await.unwrap();
        let wanted =
            json!({"exitCode": n, "stdout": format!("out-{n}\n").repeat(3), "stderr": format!("err-{n}\n").repeat(3)});
        assert_eq!(ended, wanted);
    }
    assert_eq!(text(&turn.rest().await), "word ".repeat(49));
}

#[tokio::test]
async fn endless_and_large_outputs_are_cut_and_hurt_nobody() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let large = exec(&api, &id, "head -c 5000000 /dev/zero | tr '\\0' x; echo end >&2; exit 9").await;
    let out = large["stdout"].as_str().unwrap();
    assert_eq!(
        (large["exitCode"].as_i64(), &large["truncated"], &large["stderr"]),
        (Some(9), &json!(true), &json!("end\n"))
    );
    assert!(out.len() < (1 << 20) + 200 && out.contains("[ashd: stdout truncated to 1048576 of 5000000 bytes"));

    let memory = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let began = Instant::now();
    let asked = ["yes", "yes >&2", "cat /dev/zero", "while :; do echo no end; done", "yes & yes"].map(|command| {
        let (api, id) = (api.clone(), id.clone());
        let body = json!({"command": command, "timeout": 15_000});
        tokio::spawn(async move { ask(&api, &id, body).await.expect(200) })
    });
    for task in asked {
        let ended = task.await.unwrap();
        assert_eq!(ended["truncated"], true, "{}", ended["exitCode"]);
    }
    assert!(began.elapsed() < crate::common::patience::patient(Duration::from_secs(30)), "{:?}", began.elapsed());
    assert!(memory(daemon.pid()) < 200 << 10, "{} KiB", memory(daemon.pid()));
    assert_eq!(text(&api.turn(&id, "@text fine").await), "fine");
}

#[tokio::test]
async fn a_session_that_idles_or_is_paused_or_stopped_under_a_command() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    // Frozen after 2 s of idleness: a command wakes the session, and keeps it awake.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let began = Instant::now();
    assert_eq!(exec(&api, &id, "sleep 3; echo awake").await["stdout"], "awake\n");
    assert!(began.elapsed() < crate::common::patience::patient(Duration::from_secs(5)), "{:?}", began.elapsed());

    let running = |command: &'static str| {
        let (api, id) = (api.clone(), id.clone());
        tokio::spawn(async move { ask(&api, &id, json!({"command": command})).await })
    };
    // Paused: the command is frozen, and continues with the session.
    let task = running("sleep 0.5; echo later");
    tokio::time::sleep(Duration::from_millis(200)).await;
    api.call("POST", &format!("/api/sessions/{id}/pause"), None).await.expect(200);
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(!task.is_finished());
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    assert_eq!(task.await.unwrap().expect(200)["stdout"], "later\n");
    // Stopped: the command ends with the sandbox, and its answer says so.
    let task = running("sleep 20");
    tokio::time::sleep(Duration::from_millis(300)).await;
    api.call("POST", &format!("/api/sessions/{id}/stop"), None).await.expect(200);
    assert_eq!(task.await.unwrap().expect(400)["error"], "Session is stopped");
}

#[tokio::test]
async fn commands_go_on_counting_after_a_restart_of_the_daemon() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    exec(&api, &id, "echo before; (sleep 60 >/dev/null 2>&1 &)").await;
    let lost = {
        let (api, id) = (api.clone(), id.clone());
        let body = json!({"command": "sleep 3; echo survived > after.txt", "timeout": 20_000}).to_string().into_bytes();
        tokio::spawn(async move {
            // Never answered: the daemon is killed during the command.
            let path = format!("/api/sessions/{id}/exec");
            let _ =
                tokio::time::timeout(Duration::from_secs(1), api.open("POST", &path, Some(("application/json", body))))
                    .await;
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    daemon.kill9();
    let _ = lost.await;
    daemon.restart();
    let api = daemon.api();
    assert_eq!(exec(&api, &id, "echo again").await["stdout"], "again\n");
    let began = Instant::now();
    while api.get(&format!("/api/sessions/{id}/files/after.txt")).await.status != 200 {
        assert!(
            began.elapsed() < crate::common::patience::patient(Duration::from_secs(10)),
            "the command did not go on"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The payload changes what a path refers to while the daemon writes, reads and deletes below it.
/// Whatever each call answers, nothing outside the workspace is read, written or deleted.
#[tokio::test]
async fn the_files_api_cannot_be_led_out_of_a_workspace_that_changes_under_it() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let session = daemon.data().join("sessions").join(&id);
    assert!(session.is_dir(), "{}", session.display());
    // The daemon itself may write there, so that only the path rules protect it.
    let outside = daemon.data().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret.txt"), "the host's own").unwrap();
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(daemon.data()).unwrap());
    for path in [outside.clone(), outside.join("secret.txt")] {
        std::os::unix::fs::chown(path, Some(uid), None).unwrap();
    }
    let target = outside.display().to_string();
    let script = format!(
        r#"
import os, shutil, time
def attempt(what, *args):
    # The other side races us: it may have made or removed any of these names a moment ago.
    try: what(*args)
    except OSError: pass
def write(path):
    with open(path, "w") as f: f.write("mine")
def clear(name):
    if os.path.isdir(name) and not os.path.islink(name): shutil.rmtree(name, ignore_errors=True)
    else: attempt(os.unlink, name)
def link(to, name):
    attempt(os.unlink, "t"); attempt(os.symlink, to, "t"); attempt(os.rename, "t", name)
os.makedirs("real", exist_ok=True)
end, n = time.time() + 8, 0
while time.time() < end:
    n += 1
    attempt(write, "real/secret.txt")
    for name in ("d", "x", "f"):
        clear(name)
        for to in ("{target}", "real", "{target}/secret.txt", "real/secret.txt", "../../../outside", "/proc/self/root{target}"):
            link(to, name)
    for name in ("d", "x"):
        clear(name)
        attempt(os.mkdir, name); attempt(write, name + "/secret.txt")
        time.sleep(0.002 * (n % 3))
        clear("gone"); attempt(os.rename, name, "gone"); attempt(os.symlink, "{target}", name)
    clear("f"); attempt(write, "f")
    time.sleep(0.002 * (n % 3))
    clear("f"); attempt(os.mkfifo, "f")
print(n)
"#
    );
    api.post(&format!("/api/sessions/{id}/files"), json!({"files": [{"path": "swap.py", "content": encode(&script)}]}))
        .await
        .expect(200);
    let done = Arc::new(AtomicBool::new(false));
    let calls: Vec<_> = (0..4)
        .map(|lane| {
            let (api, id, done) = (api.clone(), id.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut counts = [0_u32; 3];
                let base = format!("/api/sessions/{id}/files");
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    n += 1;
                    let path = ["d/secret.txt", "x/secret.txt", "f", "d/planted", "x/new/deep"][(n + lane) % 5];
                    match lane {
                        0 | 1 => {
                            let file = json!({"path": path, "content": encode("planted")});
                            let said = api.post(&base, json!({"files": [file]})).await.expect(200);
                            counts[0] += u32::from(said["files"][0]["written"] == true);
                        }
                        2 => {
                            // Cut short when the file shrinks during the read: its length was
                            // already sent.
                            let Some(read) = api.try_get(&format!("{base}/{path}")).await else { continue };
                            assert!(!read.text.contains("the host's own"), "{path} was read: {}", read.text);
                            counts[1] += u32::from(read.status == 200);
                        }
                        _ => counts[2] += u32::from(api.delete(&format!("{base}/{path}")).await.status == 200),
                    }
                }
                (counts, n)
            })
        })
        .collect();
    let ended = ask(&api, &id, json!({"command": "python3 swap.py", "timeout": 30_000})).await.expect(200);
    done.store(true, Ordering::Relaxed);
    let mut counts = [0; 3];
    for call in calls {
        let (some, n) = call.await.unwrap();
        assert!(n > 20, "only {n} calls were made");
        (0..3).for_each(|i| counts[i] += some[i]);
    }
    eprintln!("written, read, deleted: {counts:?}; swaps: {ended}");
    assert_eq!(ended["exitCode"], 0, "{ended}");
    // The race took place: calls of each kind also succeeded.
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert_eq!(std::fs::read_to_string(outside.join("secret.txt")).unwrap(), "the host's own");
    let names: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["secret.txt"]);
}

fn encode(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

//! A sandbox from its creation to its end.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use ash_model::Limits;
use ash_protocol::init::Exit;
use ash_protocol::launcher::{ClaudeBinary, Create};
use ashd::sandbox::{LauncherError, SandboxEvent};
use uuid::Uuid;

use crate::host::{CLIENT, Host, exit_of, output, patient, request, run, spec, wait_for};

fn cpu_us(unified: &Path) -> u64 {
    let text = std::fs::read_to_string(unified.join("cpu.stat")).expect("cpu.stat");
    text.lines().find_map(|line| line.strip_prefix("usage_usec ")).and_then(|us| us.parse().ok()).expect("usage_usec")
}

#[tokio::test]
async fn a_whole_life() {
    let host = Host::start("life");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let id = sandbox.id();
    let mut events = sandbox.take_events().expect("events");
    assert!(sandbox.take_events().is_none());
    let (status, text) = run(&sandbox, &mut events, 1, "id -u; echo hi > /workspace/made; pwd").await;
    assert_eq!((status, text.as_str()), (Exit::Code(0), "1000\n/workspace\n"));
    let made = host.session_dir(id).join("workspace/made");
    assert_eq!(std::fs::metadata(&made).expect("made").uid(), CLIENT, "files belong to ashd on disk");

    let listed = launcher.list().await.expect("listed");
    assert_eq!(listed.iter().map(|info| info.id).collect::<Vec<_>>(), [id]);
    let record = host.run_dir().join("sandboxes").join(id.to_string());
    let mode = |path: &Path| std::fs::metadata(path).map(|meta| (meta.uid(), meta.mode() & 0o777)).expect("metadata");
    assert_eq!(mode(&record), (0, 0o710), "ashd must not be able to forge the record");
    assert_eq!(mode(&record.join("sandbox.json")), (0, 0o600));
    assert_eq!(mode(&record.join("init.sock")), (CLIENT, 0o600));

    let (out, err) = output(Path::new("/dev/null"));
    sandbox.spawn(2, &spec("while :; do :; done"), out, err).await.expect("spawned");
    let unified = sandbox.info.cgroup.unified.clone();
    let from = cpu_us(&unified);
    wait_for("CPU use", || cpu_us(&unified) > from + 20_000);
    sandbox.freeze().await.expect("frozen");
    assert!(sandbox.frozen().await.expect("told"));
    let before = cpu_us(&unified);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let late = patient(Duration::from_millis(1)).as_micros() as u64;
    assert!(cpu_us(&unified) < before + late, "a frozen sandbox must not use the CPU");
    sandbox.thaw().await.expect("thawed");
    wait_for("CPU use again", || cpu_us(&unified) > before + 20_000);
    sandbox.freeze().await.expect("frozen again, to be destroyed so");

    launcher.destroy(id).await.expect("destroyed");
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    assert!(launcher.list().await.expect("listed").is_empty());
    assert_eq!(events.recv().await, Some(SandboxEvent::Died));
    assert!(matches!(sandbox.stat().await, Err(LauncherError::Gone)));
    assert!(matches!(sandbox.freeze().await, Err(LauncherError::Freeze(_))));
    launcher.destroy(id).await.expect("a second time is no error");
    launcher.destroy(Uuid::now_v7()).await.expect("nor is one that never was");
    launcher.create(request(id, Limits::default())).await.expect("the same id may come back");
}

#[tokio::test]
async fn limits_hold_and_can_be_changed() {
    let host = Host::start("limits");
    let launcher = host.client().await;
    let small = Limits { pids: 24, memory_bytes: 48 << 20, swap_bytes: 0, ..Limits::default() };
    let sandbox = host.sandbox(&launcher, small).await;
    let mut events = sandbox.take_events().expect("events");
    let fork = "i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); done; echo all";
    let (status, text) = run(&sandbox, &mut events, 1, fork).await;
    assert_ne!(status, Exit::Code(0), "{text}");
    assert!(text.contains("fork"), "the shell must say that it cannot fork: {text}");
    let more = Limits { pids: 200, ..small };
    launcher.set_limits(sandbox.id(), more).await.expect("raised");
    let (status, _) = run(&sandbox, &mut events, 3, "i=0; while [ $i -lt 40 ]; do sleep 1 & i=$((i+1)); done").await;
    assert_eq!(status, Exit::Code(0), "the raised limit holds");

    let above = launcher.set_limits(sandbox.id(), Limits { pids: 1001, ..small }).await;
    let text = above.expect_err("above the ceiling").to_string();
    assert!(text.contains("pids = 1001") && text.contains("1000"), "{text}");
    let none = launcher.set_limits(sandbox.id(), Limits { cpu_weight: 0, ..small }).await;
    assert!(none.is_err());
    let listed = launcher.list().await.expect("listed");
    assert_eq!(listed[0].limits, more, "a refused change changes nothing");

    let hog = "head -c 200000000 /dev/zero | tail -c 200000000 >/dev/null";
    if sandbox.info.cgroup.v1 {
        let (status, text) = run(&sandbox, &mut events, 4, hog).await;
        assert!(matches!(status, Exit::Code(137) | Exit::Signal(9)), "the OOM killer must end it: {status:?} {text}");
        return;
    }
    // On cgroup v2 the whole sandbox dies, including init.
    let (out, err) = output(Path::new("/dev/null"));
    sandbox.spawn(4, &spec(hog), out, err).await.expect("spawned");
    let died = async { while !matches!(events.recv().await, Some(SandboxEvent::Died) | None) {} };
    tokio::time::timeout(patient(Duration::from_secs(30)), died).await.expect("the OOM killer must end it");
    let events = std::fs::read_to_string(sandbox.info.cgroup.unified.join("cgroup.events")).expect("cgroup.events");
    assert!(events.contains("populated 0"), "and nothing of it is left: {events}");
}

#[tokio::test]
async fn a_refused_creation_leaves_nothing_and_says_why() {
    let host = Host::start("refused");
    let launcher = host.client().await;
    let good = |id| request(id, Limits::default());
    let link = host.session();
    std::fs::remove_dir(host.session_dir(link).join("workspace")).expect("removed");
    symlink("/etc", host.session_dir(link).join("workspace")).expect("link");
    let foreign = host.session();
    std::os::unix::fs::chown(host.session_dir(foreign).join("home"), Some(0), Some(0)).expect("chown");
    let open = host.session();
    std::fs::set_permissions(host.session_dir(open), PermissionsExt::from_mode(0o711)).expect("mode");
    let version = |version: &str| Create { claude: ClaudeBinary::Version(version.into()), ..good(host.session()) };
    let pipe = host.claude_dir().join("pipe");
    std::fs::create_dir(&pipe).expect("made");
    nix::unistd::mkfifo(&pipe.join("claude"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
    // Files that ashd owns or can replace are refused: the file, its directory, or a link to it.
    for (version, of_file, of_directory, mode) in
        [("ashds", CLIENT, 0, 0o755), ("below", 0, CLIENT, 0o755), ("open", 0, 0, 0o777)]
    {
        let dir = host.claude_dir().join(version);
        std::fs::create_dir(&dir).expect("made");
        std::fs::copy("/bin/true", dir.join("claude")).expect("a binary");
        std::os::unix::fs::chown(dir.join("claude"), Some(of_file), None).expect("chown");
        std::os::unix::fs::chown(&dir, Some(of_directory), None).expect("chown");
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("mode");
    }
    symlink(host.claude_dir().join("test"), host.claude_dir().join("linked")).expect("link");
    std::os::unix::fs::lchown(host.claude_dir().join("linked"), Some(CLIENT), None).expect("lchown");
    // Where ashd formerly kept versions.
    std::fs::create_dir_all(host.data_dir().join("claude/old")).expect("made");
    std::fs::copy("/bin/true", host.data_dir().join("claude/old/claude")).expect("a binary");
    let cases: [(&str, Create, &str); 15] = [
        ("ashd's binary", version("ashds"), "belongs to uid 61234"),
        ("ashd's directory", version("below"), "belongs to uid 61234"),
        ("a directory that all can write", version("open"), "has mode 777"),
        ("ashd's link", version("linked"), "belongs to uid 61234"),
        ("a version in the data directory", version("old"), "open claude"),
        ("no directories", good(Uuid::now_v7()), "open workspace"),
        ("a link as workspace", good(link), "is not a directory"),
        ("another's home", good(foreign), "belongs to uid 0"),
        ("a session that others may enter", good(open), "mode 711, which gives other users access"),
        ("no such version", version("none"), "open claude"),
        ("a path as version", version("../../etc"), "is not a version"),
        ("a hidden version", version(".x"), "is not a version"),
        ("a pipe as binary", version("pipe"), "not a regular file"),
        (
            "no configured binary",
            Create { claude: ClaudeBinary::Configured, ..good(host.session()) },
            "no configured binary",
        ),
        ("above the ceiling", request(host.session(), Limits { pids: 5000, ..Limits::default() }), "ceiling"),
    ];
    for (name, create, words) in cases {
        let error = launcher.create(create).await.expect_err(name).to_string();
        assert!(error.contains(words), "{name}: {error}");
        assert!(host.leftovers().is_empty(), "{name}: {:?}", host.leftovers());
    }
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let again = launcher.create(good(sandbox.id())).await.expect_err("it exists").to_string();
    assert!(again.contains("exists already"), "{again}");
    sandbox.stat().await.expect("and was not harmed");
}

#[tokio::test]
async fn the_death_of_an_init_is_noticed() {
    let host = Host::start("death");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let mut events = sandbox.take_events().expect("events");
    let pid = nix::unistd::Pid::from_raw(sandbox.info.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
    assert_eq!(events.recv().await, Some(SandboxEvent::Died));
    wait_for("the launcher's notice", || !Path::new(&format!("/proc/{pid}")).exists());
    let error = launcher.attach(sandbox.id()).await.expect_err("it is dead").to_string();
    assert!(error.contains("has ended"), "{error}");
    let listed = launcher.list().await.expect("listed");
    assert_eq!((listed[0].id, listed[0].pid), (sandbox.id(), 0));
    launcher.destroy(sandbox.id()).await.expect("destroyed");
    assert!(host.leftovers().is_empty());
}

#[tokio::test]
async fn many_at_once_have_uids_of_their_own_until_they_run_out() {
    let host = Host::start("many");
    let launcher = host.client().await;
    let sessions: Vec<Uuid> = (0..33).map(|_| host.session()).collect();
    let made =
        futures_util::future::join_all(sessions.iter().map(|id| launcher.create(request(*id, Limits::default()))));
    let (made, refused): (Vec<_>, Vec<_>) = made.await.into_iter().partition(Result::is_ok);
    // 64 uids are 32 pairs.
    assert_eq!((made.len(), refused.len()), (32, 1), "{refused:?}");
    assert!(refused[0].as_ref().expect_err("refused").to_string().contains("uids"));
    let mut uids: Vec<u32> = made.iter().flatten().flat_map(|s| [s.info.uid, s.info.init_uid]).collect();
    uids.sort_unstable();
    uids.dedup();
    assert_eq!(uids.len(), 64, "no uid is used twice");
    assert_eq!(launcher.list().await.expect("listed in pages").len(), 32);
    let ends = made.iter().flatten().map(|sandbox| launcher.destroy(sandbox.id()));
    for end in futures_util::future::join_all(ends).await {
        end.expect("destroyed");
    }
    assert!(host.leftovers().is_empty());
    host.sandbox(&launcher, Limits::default()).await;
}

#[tokio::test]
async fn what_is_delivered_reaches_stdin_once() {
    let host = Host::start("stdin");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let mut events = sandbox.take_events().expect("events");
    let file = tempfile::NamedTempFile::new().expect("output");
    let (out, err) = output(file.path());
    let cat = ash_protocol::init::SpawnSpec { stdin: true, ..spec("cat") };
    sandbox.spawn(7, &cat, out, err).await.expect("spawned");
    let message = |text: &str| ash_kernel::seqpacket::sealed_memfd("message", text.as_bytes()).expect("memfd");
    sandbox.deliver(7, 1, message("one\n")).await.expect("queued");
    sandbox.deliver(7, 1, message("one\n")).await.expect("known already");
    sandbox.deliver(7, 2, message("two\n")).await.expect("queued");
    sandbox.close_stdin(7).await.expect("closed");
    assert_eq!(exit_of(&mut events, 7).await, Exit::Code(0));
    assert_eq!(std::fs::read_to_string(file.path()).expect("text"), "one\ntwo\n");
}

#[tokio::test]
async fn a_sandbox_dies_before_what_is_the_admin_s() {
    let host = Host::start("oom-score");
    let launcher = host.client().await;
    // systemd sets it to -900 by OOMScoreAdjust=; this number needs no capability.
    std::fs::write(format!("/proc/{}/oom_score_adj", host.pid()), "7").expect("root may");
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let mut events = sandbox.take_events().expect("events");
    let of = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("score").trim().to_owned();
    assert_eq!((of(host.pid()).as_str(), of(sandbox.info.pid).as_str()), ("7", "500"));
    let (status, text) = run(&sandbox, &mut events, 1, "cat /proc/self/oom_score_adj").await;
    assert_eq!((status, text.trim()), (Exit::Code(0), "500"));
}

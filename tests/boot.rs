//! Start and end of the daemon: its remaining privileges, what it finds again, what it leaves.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Daemon, Options};

/// `ashd` with only these variables.
fn ashd(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashd"));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    command.output().expect("ashd can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn status(pid: u32, field: &str) -> String {
    let all = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn named(daemon: &Daemon, name: &str) -> Vec<u32> {
    let all = common::leftovers::processes(daemon);
    all.into_iter().filter(|(_, what)| what.starts_with(name)).map(|(pid, _)| u32::try_from(pid).unwrap()).collect()
}

#[test]
fn check_config_says_ok_or_every_error_and_exits_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ashd.toml");
    let path = file.to_str().unwrap();
    fs::write(&file, "[server]\nport = 0\n").unwrap();
    let good = ashd(&["check-config", "--config", path], &[]);
    assert_eq!((good.status.code(), text(&good.stdout).trim()), (Some(0), "OK"));
    fs::write(&file, "[server]\nprot = 0\n\n[limits]\npids = 'many'\n").unwrap();
    let bad = ashd(&["check-config", "--config", path], &[("ASH_HOST", "nowhere")]);
    let said = text(&bad.stderr);
    assert_eq!(bad.status.code(), Some(1), "{said}");
    for line in [
        "ashd.toml:2: unknown key \"server.prot\"; the nearest valid key is \"server.port\"",
        "ashd.toml:5: limits.pids",
        "ASH_HOST",
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    let bad = ashd(&["serve", "--config", path], &[]);
    assert!(bad.status.code() == Some(1) && text(&bad.stderr).contains("server.prot"));
}

#[test]
fn the_daemon_has_no_privilege_and_no_key() {
    let key = "sk-ant-planted-0123456789";
    let daemon = Daemon::start(Options::default().env("ANTHROPIC_API_KEY", key).env("NOISE", "planted-too"));
    let pid = daemon.pid();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (status(pid, "NoNewPrivs"), status(pid, "Groups"), status(pid, "Name")),
        ("1".into(), "".into(), "ashd".into())
    );
    for ids in ["Uid", "Gid"] {
        assert!(status(pid, ids).split(' ').all(|id| id != "0"), "{}", status(pid, ids));
    }
    let environ = text(&fs::read(format!("/proc/{pid}/environ")).unwrap());
    assert!(!environ.contains("planted") && !environ.contains("ANTHROPIC"), "{environ}");
    assert!(!memory_holds(pid, key.as_bytes()), "the key is in ashd's memory");
    let gateway = named(&daemon, "ash-gateway");
    assert_eq!(gateway.len(), 1);
    assert!(status(gateway[0], "Uid").split(' ').all(|id| id != "0"));
    assert_ne!(status(gateway[0], "Uid"), status(pid, "Uid"));
    // The check above can fail: it finds the process that does hold the key.
    assert!(memory_holds(gateway[0], key.as_bytes()), "the gateway should hold the key");
    let logs = daemon.logs();
    assert!(!logs.contains("planted") && !logs.contains(&daemon.key), "{logs}");
    daemon.stop();
}

#[test]
fn each_daemon_confines_itself_without_systemd() {
    let mut daemon = Daemon::start(Options::default());
    daemon.restart();
    for name in ["ashd", "ash-launcher", "ash-gateway"] {
        let pids = if name == "ashd" { vec![daemon.pid()] } else { named(&daemon, name) };
        assert_eq!(pids.len(), 1, "{name}");
        let facts = ash_kernel::confine::facts_of(pids[0]).unwrap();
        assert_eq!(ash_kernel::confine::missing(&facts), [], "{name}");
        // A root process cannot be inspected from outside, so each one reports its own state.
        assert!(facts.status.contains("Seccomp_filters:"), "{name}");
    }
    // The daemon works with it: a request passes all three.
    std::net::TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let logs = daemon.logs();
    assert!(logs.matches("confined itself").count() >= 3, "{logs}");
    // ashd twice and the gateway; the launcher cannot have a domain because it mounts.
    assert!(logs.matches("\"landlock\":\"ABI ").count() >= 3, "{logs}");
    daemon.stop();
}

/// Open descriptors of the shell or container that starts ashd belong to root.
#[test]
fn descriptors_of_the_starter_do_not_pass_to_the_daemons() {
    let prelude = "exec 7</etc/shadow 8>/dev/full".to_owned();
    let daemon = Daemon::start(Options { prelude: Some(prelude), ..Options::default() });
    let open = |pid: u32| -> Vec<PathBuf> {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        all.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect()
    };
    let mut pids = vec![daemon.pid()];
    for (name, count) in [("ash-launcher", 1), ("ash-gateway", 1), ("ash-keeper", 2)] {
        let found = named(&daemon, name);
        assert_eq!(found.len(), count, "{name}");
        pids.extend(found);
    }
    for pid in pids {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        for path in ["/etc/shadow", "/dev/full"] {
            assert!(!open(pid).contains(&PathBuf::from(path)), "{} has {path} open", name.trim());
        }
    }
    daemon.stop();
}

/// Anyone who can open a file or a directory can lock it. Keepers and launcher use locks to detect
/// a running instance: a user who holds such a lock would prevent their start.
#[test]
fn no_other_user_can_hold_a_lock_in_the_run_directory() {
    let daemon = Daemon::start(Options::default());
    let ashd = fs::metadata(daemon.data()).map(|data| std::os::unix::fs::MetadataExt::uid(&data)).unwrap();
    let run = daemon.run();
    let mut paths: Vec<PathBuf> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.extend(fs::read_dir(run.join("sandboxes")).unwrap().map(|entry| entry.unwrap().path()));
    for name in ["sandboxes", "launcher.keeper", "gateway.keeper", "start.lock"] {
        assert!(paths.contains(&run.join(name)), "{name} is not among {paths:?}");
    }
    // ashd itself, a member of its group (who may use the API's socket), and any other user.
    for (uid, gid) in [(ashd, ashd), (65_534, ashd), (65_534, 65_534)] {
        for path in &paths {
            let mut shell = Command::new("/bin/sh");
            std::os::unix::process::CommandExt::gid(&mut shell, gid);
            std::os::unix::process::CommandExt::uid(&mut shell, uid);
            let opened = shell.args(["-c", "exec 2>/dev/null; exec 3<\"$0\""]).arg(path).status().unwrap().success();
            // Public files to find the daemon; nothing locks them.
            let public = ["port", "launcher.toml"].iter().any(|name| path.ends_with(name));
            assert_eq!(opened, public, "{} by uid {uid}, gid {gid}", path.display());
        }
    }
    daemon.stop();
}

/// An upgrade replaces programs one after the other; a process that crashes meanwhile is restarted.
#[test]
fn a_program_that_is_away_for_a_moment_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let program = at("program");
    fs::write(at("away"), "#!/bin/sh\ncd \"${0%/*}\" && echo $$ >> starts\nuntil [ -e crash ]; do sleep 0.02; done\nrm crash\nkill -9 $$\n").unwrap();
    fs::set_permissions(at("away"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(at("away"), &program).unwrap();
    let starts = || fs::read_to_string(at("starts")).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    let log = || fs::read_to_string(at("log")).unwrap_or_default();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed() < common::patience::patient(Duration::from_secs(10)), "{what}: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut keeper = Command::new(env!("CARGO_BIN_EXE_ashd"));
    keeper.arg("keep").arg(at("keeper")).arg("--").arg(&program).stderr(fs::File::create(at("log")).unwrap());
    let mut keeper = keeper.spawn().unwrap();
    wait("the first start", &|| starts().len() == 1);
    fs::rename(&program, at("away")).unwrap();
    fs::write(at("crash"), "").unwrap();
    wait("an attempt without the program", &|| log().contains("cannot be started"));
    fs::rename(at("away"), &program).unwrap();
    wait("the second start", &|| starts().len() == 2);
    // SIGTERM is a deliberate stop.
    let pid = nix::unistd::Pid::from_raw(starts()[1].parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(!keeper.wait().unwrap().success());
}

/// Whether a process has these bytes in its readable memory.
fn memory_holds(pid: u32, needle: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.contains(" rw")).any(|line| {
        let (start, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let length = (number(end) - number(start)).min(256 << 20);
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        let read = memory.read_at(&mut bytes, number(start)).unwrap_or(0);
        memchr::memmem::find(&bytes[..read], needle).is_some()
    })
}

#[test]
fn a_killed_daemon_finds_launcher_and_gateway_again() {
    let mut daemon = Daemon::start(Options::default());
    let before = (named(&daemon, "ash-launcher"), named(&daemon, "ash-gateway"), daemon.key.clone());
    assert_eq!((before.0.len(), before.1.len()), (1, 1));
    daemon.kill9();
    daemon.restart();
    assert_eq!(before, (named(&daemon, "ash-launcher"), named(&daemon, "ash-gateway"), daemon.key.clone()));
    let took = daemon.terminate();
    assert!(took < Duration::from_millis(1000), "ending took {took:?}");
    assert_eq!(before.0, named(&daemon, "ash-launcher"));
    daemon.restart();
    daemon.stop();
}

#[test]
fn a_crashed_companion_is_started_again() {
    let daemon = Daemon::start(Options::default());
    for name in ["ash-launcher", "ash-gateway"] {
        let old = named(&daemon, name);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(old[0]).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        let start = std::time::Instant::now();
        while named(&daemon, name).is_empty() || named(&daemon, name) == old {
            assert!(
                start.elapsed() < crate::common::patience::patient(Duration::from_secs(5)),
                "{name} does not come back\n{}",
                daemon.logs()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    daemon.stop();
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start(Options::default());
    let (data, run) = (daemon.data(), daemon.run());
    let environment = [
        ("ASH_DATA_DIR", data.to_str().unwrap()),
        ("ASH_RUN_DIR", run.to_str().unwrap()),
        ("ASH_PORT", "0"),
        ("ASH_HOST", "127.0.0.1"),
    ];
    let second = ashd(&["serve"], &environment);
    let said = text(&second.stderr);
    assert!(second.status.code() == Some(1) && said.contains("another ashd is running"), "{said}");
    std::net::TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let port = daemon.port.to_string();
    let other = tempfile::Builder::new().prefix("ashd-b").tempdir().unwrap();
    let (data, run) = (other.path().join("d"), other.path().join("r"));
    fs::set_permissions(other.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let environment = [
        ("ASH_DATA_DIR", data.to_str().unwrap()),
        ("ASH_RUN_DIR", run.to_str().unwrap()),
        ("ASH_PORT", &port),
        ("ASH_HOST", "127.0.0.1"),
    ];
    let said = text(&ashd(&["serve"], &environment).stderr);
    assert!(said.contains("is in use") && said.contains("ASH_PORT"), "{said}");
    daemon.stop();
}

#[test]
fn stop_without_a_daemon_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let run: PathBuf = dir.path().join("run");
    let said = ashd(&["stop"], &[("ASH_RUN_DIR", run.to_str().unwrap())]);
    assert!(said.status.success() && text(&said.stdout).contains("nothing is running"), "{}", text(&said.stderr));
}

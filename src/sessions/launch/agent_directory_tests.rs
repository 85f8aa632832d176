use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use uuid::Uuid;

use super::*;
use crate::config::AgentsConfig;
use ash_model::TenantId;

struct Host {
    top: tempfile::TempDir,
    config: Config,
}

impl Host {
    fn new(roots: &[&str]) -> Self {
        let top = tempfile::tempdir().unwrap();
        for dir in
            ["data/agents/acme/a/v-1", "run", "etc/ashd.toml.d/agent", "etc/agent", "roots/agent", "outside/agent"]
        {
            fs::create_dir_all(top.path().join(dir)).unwrap();
        }
        let config = Config {
            data_dir: top.path().join("data"),
            run_dir: top.path().join("run"),
            file: Some(top.path().join("etc/ashd.toml")),
            agents: AgentsConfig { roots: roots.iter().map(|root| top.path().join(root)).collect() },
            ..Config::default()
        };
        Self { top, config }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.top.path().join(path)
    }

    fn named(&self, path: &str, by_admin: bool) -> &'static str {
        word(AgentDirectory::named(&self.config, &self.at(path), by_admin))
    }
}

fn word<T>(result: Result<T, Refusal>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(Refusal::Unusable(_)) => "unusable",
        Err(Refusal::Outside) => "outside",
        Err(Refusal::Own(what)) => what,
        Err(Refusal::NeedsAdmin) => "needs admin",
    }
}

#[test]
fn who_names_what() {
    let (open, rooted, wide) = (Host::new(&[]), Host::new(&["roots"]), Host::new(&[""]));
    for (path, nobody, admin, below_roots, below_all) in [
        ("roots/agent", "needs admin", "ok", "ok", "ok"),
        ("roots", "needs admin", "ok", "ok", "ok"),
        ("roots/../roots/agent", "needs admin", "ok", "ok", "ok"),
        ("outside/agent", "needs admin", "ok", "outside", "ok"),
        ("roots/../outside/agent", "needs admin", "ok", "outside", "ok"),
        ("roots/none", "needs admin", "unusable", "unusable", "unusable"),
        ("roots/../none", "needs admin", "unusable", "outside", "outside"),
        ("none", "needs admin", "unusable", "outside", "unusable"),
        ("data", "needs admin", "data directory", "outside", "data directory"),
        ("data/agents/acme/a/v-1", "needs admin", "data directory", "outside", "data directory"),
        ("run", "needs admin", "run directory", "outside", "run directory"),
        ("etc", "needs admin", "configuration directory", "outside", "configuration directory"),
        ("etc/ashd.toml.d/agent", "needs admin", "configuration directory", "outside", "configuration directory"),
        ("etc/agent", "needs admin", "ok", "outside", "ok"),
        ("", "needs admin", "data directory", "outside", "data directory"),
    ] {
        let got = [open.named(path, false), open.named(path, true), rooted.named(path, false), wide.named(path, false)];
        assert_eq!(got, [nobody, admin, below_roots, below_all], "{path}");
        assert_eq!(rooted.named(path, true), below_roots, "{path}: the admin too");
    }
}

#[test]
fn links_are_judged_by_where_they_lead() {
    let host = Host::new(&["roots"]);
    for (link, target, wanted) in [
        ("roots/relative", "agent".to_owned(), "ok"),
        ("roots/absolute", host.at("roots/agent").display().to_string(), "ok"),
        ("roots/out", "../outside/agent".to_owned(), "outside"),
        ("roots/data", host.at("data").display().to_string(), "outside"),
        ("roots/gone", "none".to_owned(), "unusable"),
        ("roots/loop", "loop".to_owned(), "unusable"),
        ("roots/magic", "/proc/self/root".to_owned(), "outside"),
        ("from-elsewhere", "roots/agent".to_owned(), "ok"),
    ] {
        symlink(target, host.at(link)).unwrap();
        assert_eq!(host.named(link, false), wanted, "{link}");
    }
    fs::write(host.at("roots/file"), "").unwrap();
    assert_eq!(host.named("roots/file", false), "unusable");
}

#[test]
fn a_directory_of_ashds_is_known_by_what_it_is_and_not_by_its_name() {
    let host = Host::new(&["roots"]);
    // A rename needs no privilege here; a bind mount would have the same inode as well.
    fs::rename(host.at("data"), host.at("roots/agent/data")).unwrap();
    symlink(host.at("roots/agent/data"), host.at("data")).unwrap();
    assert_eq!(host.named("roots/agent/data", false), "data directory");
    assert_eq!(host.named("roots/agent/data/agents", false), "data directory");
    assert_eq!(host.named("roots/agent", false), "data directory", "it holds it");
}

#[test]
fn an_uploaded_agent_is_opened_below_the_data_directory() {
    let host = Host::new(&[]);
    let agent = |path: String| Agent {
        id: Uuid::nil(),
        tenant: "acme".parse::<TenantId>().unwrap(),
        name: "a".into(),
        version: 1,
        path,
        path_by_admin: false,
        env: Default::default(),
        slug: None,
        description: None,
        model: None,
        backend: None,
        system_prompt: None,
        status: None,
        config: None,
        created_at: 0,
        updated_at: 0,
    };
    let data = host.at("data").display().to_string();
    let own = AgentDirectory::of(&host.config, &agent(format!("{data}/agents/acme/a/v-1"))).unwrap();
    let found = own.to_file().unwrap().metadata().unwrap().ino();
    assert!(own.is_uploaded() && found == fs::metadata(host.at("data/agents/acme/a/v-1")).unwrap().ino());
    // Not uploaded agents, so these are ordinary paths.
    for path in [
        format!("{data}/agents/acme/a"),
        format!("{data}/agents/acme/a/v-1/.."),
        format!("{data}/agents/acme/a/../../../../outside/agent"),
        format!("{data}/agents/acme/b/v-1"),
    ] {
        let refused = AgentDirectory::of(&host.config, &agent(path.clone())).unwrap_err();
        assert!(matches!(refused, SessionError::AgentDirectoryRefused { .. }), "{path}: {refused}");
    }
    fs::remove_dir(host.at("data/agents/acme/a/v-1")).unwrap();
    symlink(host.at("outside/agent"), host.at("data/agents/acme/a/v-1")).unwrap();
    let gone = AgentDirectory::of(&host.config, &agent(format!("{data}/agents/acme/a/v-1"))).unwrap_err();
    assert!(matches!(gone, SessionError::AgentDirectoryGone { .. }), "{gone}");
}

#[test]
fn a_directory_that_is_swapped_all_the_time_is_inside_or_refused() {
    let host = Host::new(&["roots"]);
    symlink(host.at("outside/agent"), host.at("roots/link")).unwrap();
    let inside = fs::metadata(host.at("roots/agent")).unwrap().ino();
    let swapping = std::sync::atomic::AtomicBool::new(true);
    let (mut opened, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while swapping.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, host.at("roots/agent"), CWD, host.at("roots/link"), flags).unwrap();
            }
        });
        for _ in 0..5000 {
            match AgentDirectory::named(&host.config, &host.at("roots/agent"), false) {
                Ok(directory) => {
                    assert_eq!(directory.to_file().unwrap().metadata().unwrap().ino(), inside);
                    opened += 1;
                }
                Err(_) => refused += 1,
            }
        }
        swapping.store(false, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(opened > 0 && refused > 0, "the race did not happen: {opened} opened, {refused} refused");
}

//! Tests of the merge: texts and variables in, values or errors out.

use std::collections::BTreeMap;

use super::load::{ConfigErrors, Layer, merge};
use super::*;

fn given(texts: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let layers: Vec<Layer> = (texts.iter().enumerate())
        .map(|(n, text)| Layer { name: format!("{n}.toml"), text: (*text).to_owned() })
        .collect();
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    merge(&layers, &environment)
}

#[test]
fn the_defaults_are_the_contract_s() {
    let config = given(&[], &[]).unwrap();
    assert_eq!((config.server.host.to_string().as_str(), config.server.port), ("0.0.0.0", 4100));
    assert_eq!((config.pool.max_sandboxes, config.pool.idle_timeout_ms), (1000, 1_800_000));
    assert_eq!(config.attachments.max_bytes, 10 << 20);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.gateway.upstream, Upstream::Offline);
}

#[test]
fn later_wins_key_by_key() {
    let one = "data_dir = '/a'\n[server]\nport = 1\nhost = '127.0.0.1'\n[limits]\nmemory_bytes = '512MiB'\npids = 9";
    let two = "[server]\nport = 2\n[limits]\npids = 10\n";
    let config = given(&[one, two], &[("ASH_PORT", "3"), ("ASH_HOST", " ")]).unwrap();
    assert_eq!((config.server.port, config.server.host.to_string().as_str()), (3, "127.0.0.1"));
    assert_eq!((config.limits.memory_bytes, config.limits.pids), (512 << 20, 10));
    assert_eq!(config.data_dir, PathBuf::from("/a"));
    assert_eq!(given(&[one, two], &[]).unwrap().server.port, 2);
}

#[test]
fn every_variable_of_the_contract_is_known() {
    let config = given(
        &[],
        &[
            ("ASH_PORT", "0"),
            ("ASH_HOST", "::1"),
            ("ASH_API_KEY", "k"),
            ("ASH_DATA_DIR", "/d"),
            ("ASH_MAX_SANDBOXES", "5"),
            ("ASH_IDLE_TIMEOUT_MS", "1000"),
            ("ASH_CREDENTIAL_KEY", "0123456789abcdef0123456789abcdef"),
            ("ASH_MAX_ATTACHMENT_SIZE", "1MiB"),
            ("ASH_CLAUDE_BIN", "/c"),
            ("ASH_RUN_DIR", "/r"),
            ("ANTHROPIC_API_KEY", "s"),
            ("ANTHROPIC_BASE_URL", "http://localhost:1/base/"),
            ("ANTHROPIC_CUSTOM_HEADERS", "A: b\n\nC: d: e"),
        ],
    )
    .unwrap();
    assert_eq!((config.server.port, config.server.host.to_string().as_str()), (0, "::1"));
    assert_eq!(config.auth.api_key.as_deref(), Some("k"));
    assert_eq!(config.auth.credential_key.as_deref().map(str::len), Some(32));
    assert_eq!((config.pool.max_sandboxes, config.pool.idle_timeout_ms), (5, 1000));
    assert_eq!(config.attachments.max_bytes, 1 << 20);
    assert_eq!(config.claude.binary, Some("/c".into()));
    assert_eq!((config.data_dir, config.run_dir), ("/d".into(), "/r".into()));
    assert_eq!(config.gateway.upstream, Upstream::Url("http://localhost:1/base".to_owned()));
    assert_eq!(config.gateway.api_key.as_deref(), Some("s"));
    let headers = [("A", "b"), ("C", "d: e")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(config.gateway.custom_headers, headers);
}

#[test]
fn the_upstream_follows_from_what_is_there() {
    let anthropic = Upstream::Url("https://api.anthropic.com".to_owned());
    for (environment, expected) in [
        (&[("ANTHROPIC_API_KEY", "k")][..], anthropic.clone()),
        (&[("ANTHROPIC_API_KEY", "k"), ("ASH_UPSTREAM", "offline")], Upstream::Offline),
        (&[("ANTHROPIC_BASE_URL", "http://x"), ("ASH_UPSTREAM", "offline")], Upstream::Offline),
        (&[("ASH_UPSTREAM", "https://api.anthropic.com/")], anthropic),
        (&[("ANTHROPIC_BASE_URL", "https://x")], Upstream::Url("https://x".to_owned())),
    ] {
        assert_eq!(given(&[], environment).unwrap().gateway.upstream, expected, "{environment:?}");
    }
}

#[test]
fn a_key_is_not_sent_in_clear_unless_the_admin_says_so() {
    for url in ["http://192.0.2.1:80", "http://model.test/v1"] {
        let why = given(&[], &[("ANTHROPIC_BASE_URL", url)]).unwrap_err().to_string();
        assert!(why.contains(url) && why.contains("in clear") && why.contains("allow_insecure_upstream"), "{why}");
        let allowed = given(&["[gateway]\nallow_insecure_upstream = true"], &[("ANTHROPIC_BASE_URL", url)]).unwrap();
        assert_eq!(allowed.gateway.upstream, Upstream::Url(url.to_owned()));
        given(&[], &[("ANTHROPIC_BASE_URL", url), ("ASH_ALLOW_INSECURE_UPSTREAM", "1")]).unwrap();
    }
    assert!(given(&["[gateway]\nallow_insecure_upstream = \"yes\""], &[]).is_err());
}

#[test]
fn the_gateways_state_is_beside_the_data() {
    let of = |data: &str| given(&[], &[("ASH_DATA_DIR", data)]).unwrap().gateway_state_dir();
    assert_eq!(of("/var/lib/ashd"), Path::new("/var/lib/ash-gateway"));
    assert_eq!(of("/srv/ash/"), Path::new("/srv/ash-gateway"));
    let own = given(&["[gateway]\nstate_dir = \"/x\""], &[]).unwrap();
    assert_eq!(own.gateway_state_dir(), Path::new("/x"));
    assert!(given(&["[gateway]\nstate_dir = \"x\""], &[]).is_err());
}

#[test]
fn errors_name_the_place_the_key_and_the_way_out() {
    for (text, expected) in [
        ("[server]\n\nprot = 1", "0.toml:3: unknown key \"server.prot\"; the nearest valid key is \"server.port\""),
        ("[sever]\nport = 1", "0.toml:1: unknown key \"sever\"; the nearest valid key is \"server\""),
        ("port = 1", "0.toml:1: unknown key \"port\"; the nearest valid key is \"server.port\""),
        (
            "[pool]\ncolour = 1",
            "0.toml:2: unknown key \"pool.colour\"; [pool] knows pool.max_sandboxes, pool.max_sandboxes_per_tenant, pool.idle_timeout_ms, pool.warm, pool.parked",
        ),
        ("[pool]\nparked = 101", "0.toml:2: pool.parked: expected a whole number from 0 to 100, found 101"),
        ("[pool]\nparked = '2'", "pool.parked: expected a whole number from 0 to 100, found \"2\""),
        (
            "[server]\nport = 'x'",
            "0.toml:2: server.port: expected a port from 0 to 65535 (0 picks a free one), found \"x\"",
        ),
        ("[server]\nport = 65536", "found 65536"),
        ("[server]\nport = -1", "found -1"),
        ("server = 1", "0.toml:1: server: expected a section [server], found a value of type integer"),
        ("data_dir = 'here'", "0.toml:1: data_dir: expected an absolute path, found \"here\""),
        ("[limits]\nmemory_bytes = '2 gigs'", "expected a size"),
        ("[limits]\nmemory_bytes = 1", "limits.memory_bytes: 1 is too little"),
        ("[limits]\npids = 100000", "limits.pids: 100000 is above launcher.ceiling.pids, which is 32768"),
        ("[launcher]\nuid_base = 1000", "leave the range"),
        ("[launcher]\ncgroup = '../x'", "expected a name"),
        ("[claude]\nversion = '..'", "expected a version"),
        ("run_dir = '/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'", "Choose a shorter path"),
        ("[server", "0.toml:1: "),
        ("a = 1\na = 2", "0.toml:2: "),
    ] {
        let errors = given(&[text], &[]).unwrap_err().to_string();
        assert!(errors.contains(expected), "{text}: {errors}");
    }
    let errors = given(&["x = 1", "y = 2"], &[("ASH_PORT", "many")]).unwrap_err();
    assert_eq!(errors.0.len(), 3, "{errors}");
    assert_eq!(errors.0[2], "variable ASH_PORT: expected a port from 0 to 65535 (0 picks a free one), found \"many\"");
}

#[test]
fn errors_of_a_file_that_is_no_toml_are_bounded() {
    let lines = "x]\n".repeat(1000);
    let errors = given(&[&lines], &[]).unwrap_err().to_string();
    assert_eq!(errors.lines().count(), 21, "{errors}");
    assert!(errors.contains("0.toml: ") && errors.contains(" more errors of syntax"), "{errors}");
    let errors = given(&[&format!("[server]\n{} = 1", "n".repeat(100_000))], &[]).unwrap_err().to_string();
    assert!(errors.len() < 300 && errors.contains("unknown key \"server.nnn"), "{errors}");
}

#[test]
fn no_secret_is_shown() {
    let errors = given(&["[auth]\ncredential_key = 'planted-1'"], &[("ASH_CREDENTIAL_KEY", "planted-2")]).unwrap_err();
    assert!(errors.0.len() == 2 && !errors.to_string().contains("planted"), "{errors}");
    let config = given(
        &[],
        &[("ASH_API_KEY", "planted"), ("ANTHROPIC_API_KEY", "planted"), ("ANTHROPIC_CUSTOM_HEADERS", "x: planted")],
    )
    .unwrap();
    assert!(!format!("{config:?}").contains("planted"));
    // The configuration for the unprivileged ashd has the key of its clients, and nothing of the
    // model's.
    let handed: Config = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(handed.auth.api_key.as_deref(), Some("planted"));
    assert_eq!((handed.gateway.api_key, handed.gateway.custom_headers), (None, Vec::new()));
}

#[test]
fn files_are_read_with_their_drop_ins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ashd.toml");
    let errors = Config::load(Some(&file)).unwrap_err();
    assert!(errors.to_string().contains("ashd.toml: No such file"), "{errors}");
    std::fs::write(&file, "[limits]\npids = 1\ncpu_millis = 10").unwrap();
    let drop_ins = dir.path().join("ashd.toml.d");
    std::fs::create_dir(&drop_ins).unwrap();
    for (name, text) in [("20.toml", "[limits]\npids = 3"), ("10.toml", "[limits]\npids = 2"), ("30.bak", "nonsense")] {
        std::fs::write(drop_ins.join(name), text).unwrap();
    }
    let limits = Config::load(Some(&file)).unwrap().limits;
    assert_eq!((limits.pids, limits.cpu_millis), (3, 10));
}

#[test]
fn the_documentation_names_every_key() {
    let page = include_str!("../../docs/configuration.md");
    for (name, env, _) in reference() {
        let documented = name.rsplit_once('.').map_or(page.contains(&format!("`{name}`")), |(section, word)| {
            page.contains(&format!("`[{section}]`")) && page.contains(&format!("`{word}`"))
        });
        assert!(documented, "docs/configuration.md does not have {name}");
        assert!(
            env.is_none_or(|env| page.contains(&format!("`{env}`"))),
            "docs/configuration.md does not have {env:?}"
        );
    }
}

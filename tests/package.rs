//! The package agrees with the programs: samples, manuals, dashboard, alerts, maintainer scripts.
//! `tests/machine` installs, upgrades and removes it in a booted machine.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ash_launcher::settings::{Flags, Settings};
use ashd::config::{self, Config};
use clap::{CommandFactory, Parser};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Lines such as `#key = value` without the number sign; all others unchanged.
fn uncommented(text: &str, sign: &str) -> String {
    let line = |line: &str| match line.strip_prefix(sign) {
        Some(rest) if is_setting(rest) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn is_setting(line: &str) -> bool {
    let key = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || "_.".contains(c));
    line.split_once(" = ").is_some_and(|(name, _)| key(name))
        || line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(key)
}

fn load(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ashd.toml");
    fs::write(&file, text).unwrap();
    Config::load(Some(&file)).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"))
}

#[test]
fn the_sample_has_every_key_with_its_default() {
    let sample = text("packaging/etc/ashd.sample.toml");
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in sample.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, _)) =
            line.strip_prefix('#').filter(|l| is_setting(l)).and_then(|l| l.split_once(" = "))
        {
            assert!(found.insert(format!("{section}{key}")), "{section}{key} is there twice");
        }
    }
    let known: BTreeSet<String> = config::reference().map(|(name, ..)| name.to_owned()).collect();
    assert_eq!(found, known);
    for (name, variable, _) in config::reference() {
        let said = variable.is_none_or(|variable| sample.contains(&format!("Variable: {variable}.")));
        assert!(said, "the variable of {name} is not in the sample");
    }
    load(&sample);

    // Example values of keys that are unset by default.
    let illustrations = [
        "io_read_bps",
        "io_write_bps",
        "io_read_iops",
        "io_write_iops",
        "level",
        "api_key",
        "credential_key",
        "binary",
        "base_url",
        "reserve_bytes",
        "state_dir",
    ];
    let defaults: String = sample
        .lines()
        .filter(|line| !illustrations.iter().any(|key| line.starts_with(&format!("#{key} = "))))
        .map(|line| format!("{line}\n"))
        .collect();
    let value = |config: &Config| serde_json::to_value(config).unwrap();
    assert_eq!(value(&load(&uncommented(&defaults, "#"))), value(&Config::default()));
    let secrets = sample.replace("\"...\"", "\"0123456789012345678901234567890123456789\"");
    load(&uncommented(&secrets, "#"));
}

#[test]
fn the_shipped_configuration_changes_nothing_and_what_it_suggests_is_valid() {
    let shipped = text("packaging/etc/ashd.toml");
    let value = |config: &Config| serde_json::to_value(config).unwrap();
    assert_eq!(value(&load(&shipped)), value(&Config::default()));
    // A comment may follow a value, as TOML allows.
    let suggested = uncommented(&shipped, "# ");
    assert_ne!(suggested, shipped);
    assert_eq!(value(&load(&suggested)), value(&Config::default()));
}

#[test]
fn the_launchers_file_is_one_it_takes_and_shows_its_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |text: &str| {
        let file = dir.path().join("launcher.toml");
        fs::write(&file, text).unwrap();
        let arguments = ["ash-launcher", "--client-user", "12345", "--config", file.to_str().unwrap()];
        Settings::load(&Flags::parse_from(arguments)).unwrap_or_else(|error| panic!("{error}\nin\n{text}"))
    };
    let shipped = text("packaging/etc/launcher.toml");
    let (bare, shipped_as_is, mut suggested) =
        (settings(""), settings(&shipped), settings(&uncommented(&shipped, "# ")));
    // An example number: the default is no limit, which cannot be written.
    assert_ne!(
        bare.ceiling.io_write_bps,
        std::mem::replace(&mut suggested.ceiling.io_write_bps, bare.ceiling.io_write_bps)
    );
    for other in [&shipped_as_is, &suggested] {
        assert_eq!((bare.uid_base, bare.uid_count, &bare.cgroup), (other.uid_base, other.uid_count, &other.cgroup));
        assert_eq!(bare.ceiling, other.ceiling);
        assert_eq!(bare.floor.landlock_abi, other.floor.landlock_abi);
    }
    assert!(suggested.claude_binary.is_some(), "the suggestions were read");
}

#[test]
fn the_manuals_have_every_option_and_command() {
    // Hyphens of a manual are escaped, so that they can be copied into a shell.
    let manual = |name: &str| text(name).replace("\\-", "-");
    let launcher = manual("packaging/man/ash-launcher.8");
    let flags = Flags::command();
    // Hidden options are for ashd's own programs.
    let shown = flags.get_arguments().filter(|argument| !argument.is_hide_set());
    for argument in shown.filter_map(|argument| argument.get_long()) {
        assert!(launcher.contains(&format!("--{argument}")), "--{argument} is not in ash-launcher(8)");
    }
    let ashd = manual("packaging/man/ashd.8");
    let help = Command::new(env!("CARGO_BIN_EXE_ashd")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let commands: Vec<&str> =
        commands.take_while(|line| line.starts_with(' ')).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 2, "{help}");
    for command in commands.iter().filter(|command| **command != "help") {
        assert!(ashd.contains(&format!("\n.B {command}\n")), "{command} is not in ashd(8)");
    }
    assert!(ashd.contains("--config"));
    for variable in config::reference().filter_map(|(_, variable, _)| variable) {
        assert!(ashd.contains(variable), "{variable} is not in ashd(8)");
    }
}

/// Names of metrics in a text: words that start with `ash_`.
fn metrics(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !word(c)).filter(|word| word.starts_with("ash_"));
    words.map(str::to_owned).collect()
}

#[tokio::test]
async fn dashboard_and_alerts_name_metrics_that_there_are() {
    let daemon = common::Daemon::start(common::Options::default());
    let api = daemon.api();
    // Usage of sandboxes is counted from the first one on.
    api.deploy("a").await;
    api.session("a").await;
    let exposed = api.get("/metrics").await.text;
    let dashboard: serde_json::Value = serde_json::from_str(&text("packaging/monitoring/grafana.json")).unwrap();
    let alerts = text("packaging/monitoring/alerts.yml");
    let panels = dashboard["panels"].as_array().unwrap();
    let expressions: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .chain(alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")))
        .collect();
    assert!(expressions.len() > 10, "{expressions:?}");
    for expression in expressions {
        for name in metrics(expression) {
            assert!(exposed.contains(&format!("# TYPE {name} ")), "{name} of `{expression}` is not in\n{exposed}");
        }
        for label in expression.split('{').skip(1).filter_map(|part| part.split('}').next()) {
            let exact = label.split(',').filter(|pair| !pair.contains("=~") && pair.contains("=\""));
            for pair in exact.filter(|pair| !pair.starts_with("job=")) {
                assert!(exposed.contains(pair), "{pair} of `{expression}` is not in\n{exposed}");
            }
        }
    }
}

#[test]
fn the_maintainer_scripts_know_every_unit() {
    // The package enables what systemd starts for the admin; it only stops the rest.
    let (mut units, mut enabled) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(path("systemd")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".service") || name.ends_with(".socket") {
            if text(&format!("systemd/{name}")).contains("[Install]") {
                enabled.insert(name.clone());
            }
            units.insert(name);
        }
    }
    assert!(enabled.len() >= 6, "{enabled:?}");
    for script in ["postinst", "postrm"] {
        let text = text(&format!("packaging/debian/{script}"));
        let line = text.lines().find_map(|line| line.strip_prefix("units=\"")).unwrap().trim_end_matches('"');
        assert_eq!(line.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), enabled, "{script}");
    }
    let prerm = text("packaging/debian/prerm");
    let postrm = text("packaging/debian/postrm");
    for unit in &units {
        assert!(postrm.contains(unit), "postrm leaves drop-ins of {unit}");
        assert!(prerm.contains(unit), "prerm does not stop {unit}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        let checked = Command::new("sh").arg("-n").arg(path(&format!("packaging/debian/{script}"))).status().unwrap();
        assert!(checked.success(), "{script}");
    }
}

/// Two builds from the same sources are equal. It lists every linked crate with its checksum, and
/// conforms to CycloneDX 1.5.
#[test]
fn the_bill_of_materials_is_whole_reproducible_and_valid() {
    let make = || {
        let out = Command::new(path("packaging/sbom")).arg("1.2.3-4").output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let bom = make();
    assert_eq!(bom, make());
    let parsed: serde_json::Value = serde_json::from_str(&bom).unwrap();
    assert_eq!((&parsed["bomFormat"], &parsed["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    assert_eq!(parsed["metadata"]["component"]["version"], "1.2.3-4");
    let components = parsed["components"].as_array().unwrap();
    let named =
        |name: &str| components.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name} is not in it"));
    for (name, scope) in [("tokio", "required"), ("sqlite", "required"), ("clap_derive", "excluded")] {
        assert_eq!(named(name)["scope"], scope, "{name}");
    }
    assert!(!components.iter().any(|c| c["name"] == "proptest"), "what only tests need is not shipped");
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<&str> = tree.lines().filter(|l| !l.is_empty() && !l.contains(" (/")).collect();
    let crates: BTreeSet<String> = crates.iter().map(|l| l.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    let listed = components.iter().filter(|c| c["name"] != "sqlite");
    let listed: BTreeSet<String> =
        listed.map(|c| format!("{} v{}", c["name"].as_str().unwrap(), c["version"].as_str().unwrap())).collect();
    assert_eq!(listed, crates);
    let lock = text("Cargo.lock");
    for component in components.iter().filter(|c| c["name"] != "sqlite") {
        let sum = component["hashes"][0]["content"].as_str().unwrap();
        assert!(sum.len() == 64 && lock.contains(sum), "{component}");
    }
    let shipped = text("packaging/build-deb");
    assert!(shipped.contains("packaging/sbom \"$version\" >\"$pkg/$doc/ashd.cdx.json\""), "it is in the package");

    let python = path(".cache/cyclonedx/bin/python");
    assert!(python.exists(), "the validator is not installed: run sudo ./scripts/setup");
    let file = tempfile::NamedTempFile::new().unwrap();
    let judge = |document: &str| {
        fs::write(file.path(), document).unwrap();
        let script = "import sys\nfrom cyclonedx.schema import SchemaVersion\nfrom cyclonedx.validation.json import JsonStrictValidator\n\
                      wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())\n\
                      sys.exit(str(wrong) if wrong else 0)";
        let out = Command::new(&python).args(["-c", script]).arg(file.path()).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (valid, why) = judge(&bom);
    assert!(valid, "{why}");
    assert!(!judge(&bom.replace("\"SHA-256\"", "\"SHA-257\"")).0, "the validator can tell");
}

/// Every exception of the dependency check has a reason; the check itself is a step of
/// scripts/test.
#[test]
fn exceptions_of_the_dependencies_have_reasons() {
    let deny: toml::Table = text("deny.toml").parse().unwrap();
    let skipped = deny["bans"]["skip"].as_array().unwrap();
    for entry in skipped {
        assert!(
            entry.get("reason").and_then(|reason| reason.as_str()).is_some_and(|reason| reason.len() > 5),
            "{entry}"
        );
    }
    assert_eq!(deny["bans"]["multiple-versions"].as_str(), Some("deny"));
    assert_eq!(deny["sources"]["unknown-git"].as_str(), Some("deny"));
    assert!(text("scripts/test").contains("cargo deny --locked check --deny unmatched-skip"));
    assert!(!text(".ci/run").contains("RETRIES") && text(".config/nextest.toml").contains("\nretries = 0\n"));
}

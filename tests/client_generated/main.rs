//! Clients generated from `/docs/json`: it is valid OpenAPI 3.1, a Python client from
//! `openapi-python-client` works with the daemon, and the types in `clients/typescript` are up to
//! date.
//!
//! `ASH_UPDATE_CLIENTS=1 cargo nextest run --test client_generated` regenerates
//! `clients/typescript/types.ts`.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../http_support/mod.rs"]
mod http_support;
mod typescript;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Daemon, Options};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that `scripts/setup` installs.
fn tool(path: &str) -> PathBuf {
    let found = root().join(".cache").join(path);
    assert!(found.exists(), "{} is not installed: run sudo ./scripts/setup", found.display());
    found
}

fn works(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {}\n{said}", out.status);
    said
}

async fn description() -> Value {
    http_support::Api::start().await.call("GET /docs/json", "").await.json()
}

async fn written(dir: &Path) -> PathBuf {
    let file = dir.join("openapi.json");
    std::fs::write(&file, description().await.to_string()).unwrap();
    file
}

#[tokio::test]
async fn the_description_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path()).await;
    let said = works(
        Command::new(tool("openapi-validator/bin/python"))
            .args(["-m", "openapi_spec_validator", "--schema", "3.1"])
            .arg(file),
    );
    assert!(said.contains("OK"), "{said}");
}

#[tokio::test]
async fn a_client_that_openapi_python_client_generates_works() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path()).await;
    // The generator treats only one content type as bytes.
    let config = dir.path().join("config.yml");
    std::fs::write(&config, "content_type_overrides:\n  application/gzip: application/octet-stream\n  application/zstd: application/octet-stream\n").unwrap();
    let said = works(
        Command::new(tool("openapi-client/bin/openapi-python-client"))
            .args(["generate", "--meta", "none", "--path"])
            .arg(&file)
            .arg("--config")
            .arg(&config)
            .arg("--output-path")
            .arg(dir.path().join("ash_generated")),
    );
    assert!(
        !said.contains("will be omitted") && !said.contains("Cannot parse"),
        "parts of the description are left out: {said}"
    );
    let daemon = Daemon::start(Options::default());
    let agent = daemon.agent_dir("generated", &[("CLAUDE.md", "You are a test.\n")]);
    let said = works(
        Command::new(tool("openapi-client/bin/python"))
            .arg(root().join("tests/fixtures/client_generated.py"))
            .args([&format!("http://127.0.0.1:{}", daemon.port), &daemon.key])
            .arg(agent)
            .env("PYTHONPATH", dir.path())
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    );
    println!("{said}");
}

#[tokio::test]
async fn the_typescript_types_are_those_of_the_description() {
    let file = root().join("clients/typescript/types.ts");
    let types = typescript::types(&description().await);
    if std::env::var_os("ASH_UPDATE_CLIENTS").is_some() {
        std::fs::write(&file, &types).unwrap();
    }
    let current = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        current == types,
        "{} is not what /docs/json says now; write it anew: ASH_UPDATE_CLIENTS=1 cargo nextest run --test client_generated",
        file.display()
    );
}

#[tokio::test]
async fn the_typescript_client_is_strict_and_works() {
    let dir = tempfile::tempdir().unwrap();
    let sources = root().join("clients/typescript");
    let project = sources.join("tsconfig.json");
    let tsc = tool("typescript/node_modules/.bin/tsc");
    works(Command::new(&tsc).arg("--project").arg(&project).args(["--strict", "--noEmit"]));
    works(
        Command::new(&tsc)
            .arg("--project")
            .arg(&project)
            .args(["--strict", "--noEmit", "false", "--outDir"])
            .arg(dir.path()),
    );
    std::fs::copy(sources.join("package.json"), dir.path().join("package.json")).unwrap();
    let daemon = Daemon::start(Options::default());
    let said = works(Command::new("node").arg(dir.path().join("example.js")).args([
        &format!("http://127.0.0.1:{}", daemon.port),
        &daemon.key,
        "@text written by the agent",
    ]));
    assert!(said.contains("written by the agent") && said.contains("session ended"), "{said}");
}

/// The types must refuse these, so that a check that accepts everything is noticed.
#[test]
fn the_check_of_types_sees_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["types.ts", "client.ts", "package.json", "tsconfig.json"] {
        std::fs::copy(root().join("clients/typescript").join(name), dir.path().join(name)).unwrap();
    }
    let check = |line: &str| {
        let text = format!("import {{ Ash }} from \"./client.js\";\nconst ash = new Ash(\"u\", \"k\");\n{line}\n");
        std::fs::write(dir.path().join("example.ts"), text).unwrap();
        let tsc = tool("typescript/node_modules/.bin/tsc");
        let out = Command::new(tsc).arg("--project").arg(dir.path()).args(["--strict", "--noEmit"]).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let (good, said) =
        check(r#"ash.call("POST /api/sessions", { body: { agent: "a" } }).then((made) => made.session.id.length);"#);
    assert!(good, "{said}");
    for mistake in [
        r#"ash.call("POST /api/sessions", { body: {} });"#,
        r#"ash.call("POST /api/sessions", { body: { agent: 5 } });"#,
        r#"ash.call("POST /api/session", { body: { agent: "a" } });"#,
        r#"ash.call("GET /api/sessions/{id}", {});"#,
        r#"ash.call("GET /api/sessions/{id}", { path: { id: "x" } }).then((answer) => answer.session.name);"#,
    ] {
        let (good, said) = check(mistake);
        assert!(!good, "accepted: {mistake}\n{said}");
    }
}

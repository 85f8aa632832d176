//! Public bug reports about files, on a running daemon: ashd runs as its own user, which owns the
//! files of sessions.
#![allow(clippy::unwrap_used)]

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Api, Daemon, Options};
use serde_json::{Value, json};

async fn shell(api: &Api, id: &str, command: &str) -> String {
    let answer = api.post(&format!("/api/sessions/{id}/exec"), json!({ "command": command })).await.expect(200);
    let text = |field: &str| answer[field].as_str().unwrap().to_owned();
    format!("{}{}", text("stdout"), text("stderr")).trim().to_owned()
}

async fn session(api: &Api) -> String {
    api.session("a").await
}

fn skipped(answer: &Value) -> Vec<(&str, &str)> {
    let list = answer["skipped"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|entry| (entry["path"].as_str().unwrap(), entry["reason"].as_str().unwrap())).collect()
}

/// <https://github.com/AndyMik90/Aperant/issues/1832>: a virtual environment works in a fork,
/// because links are copied unchanged. A sparse file of 1 TB can be copied.
#[tokio::test]
async fn a_fork_has_all_that_the_session_has() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = session(&api).await;
    let made = "mkdir -p .venv/bin empty d && ln -s /usr/bin/env .venv/bin/python && ln -s ../.. d/up && echo x > a && ln a d/b \
                && chmod 751 a && chmod 500 d && truncate -s 1T sparse && printf y >> sparse && touch -d @1000000000.25 a empty \
                && mkfifo pipe && echo z > $'caf\\xe9' && echo w > closed && chmod 000 closed && mkdir shut && echo v > shut/in \
                && chmod 000 shut && ln -s /nowhere ~/home-link && echo made";
    assert_eq!(shell(&api, &id, made).await, "made");
    let answer = api.call("POST", &format!("/api/sessions/{id}/fork"), None).await.expect(201);
    assert_eq!(skipped(&answer), [("pipe", "a named pipe")]);
    let fork = answer["session"]["id"].as_str().unwrap().to_owned();
    api.verb(&fork, "resume").await;
    for (command, want) in [
        (".venv/bin/python echo 42", "42"),
        ("readlink .venv/bin/python d/up ~/home-link", "/usr/bin/env\n../..\n/nowhere"),
        ("stat -c '%a %h %.2Y' a", "751 2 1000000000.25"),
        ("stat -c '%a %.2Y' empty; stat -c %a d closed shut", "755 1000000000.25\n500\n0\n0"),
        ("[ a -ef d/b ] && echo same", "same"),
        (
            "stat -c %s sparse; tail -c1 sparse; [ $(stat -c %b sparse) -lt 100 ] && echo sparse",
            "1099511627777\nysparse",
        ),
        ("cat $'caf\\xe9'; chmod 400 closed; cat closed; chmod 700 shut; cat shut/in", "z\nw\nv"),
        ("LC_ALL=C ls -a | tr '\\n' ' '", ". .. .venv CLAUDE.md a caf\u{fffd} closed d empty shut sparse "),
    ] {
        assert_eq!(shell(&api, &fork, command).await, want.trim(), "{command}");
    }
    assert_eq!(shell(&api, &id, "stat -c %a closed shut d").await, "0\n0\n500");
    daemon.stop();
}

/// <https://github.com/openagents-org/openagents/issues/362>: names are bytes, and ashd reads files
/// of the session whatever their mode is.
#[tokio::test]
async fn every_name_and_every_mode_can_be_read_written_and_deleted() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = session(&api).await;
    let files = format!("/api/sessions/{id}/files");
    let made = "echo one > $'caf\\xe9' && mkdir $'dir\\xff' && echo two > $'dir\\xff/in' && echo three > 'caf%E9' && echo four > closed \
                && mkdir shut && echo five > shut/in && chmod 000 closed shut/in shut && echo made";
    assert_eq!(shell(&api, &id, made).await, "made");
    let list = api.get(&files).await.expect(200);
    let paths: Vec<_> = list["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["CLAUDE.md", "caf%25E9", "caf%E9", "closed", "dir%FF/in", "shut/in"]);
    for (path, want) in [
        ("caf%E9", "one"),
        ("dir%FF/in", "two"),
        ("caf%25E9", "three"),
        ("closed", "four"),
        ("shut/in", "five"),
        // The text of the list, encoded once more.
        ("dir%25FF/in", "two"),
    ] {
        let answer = api.get(&format!("{files}/{path}?format=json")).await.expect(200);
        assert_eq!(answer["content"].as_str().unwrap().trim(), want, "{path}");
    }
    assert_eq!(api.get(&format!("{files}/caf%E9.txt")).await.expect(404)["error"], "File not found: caf%E9.txt");
    let body = json!({"files": [{"path": "dir%FF/new", "content": STANDARD.encode("six")}, {"path": "shut/new", "content": ""}]});
    let written = api.post(&files, body).await.expect(200);
    assert!(written["files"].as_array().unwrap().iter().all(|file| file["written"] == true), "{written}");
    assert_eq!(shell(&api, &id, "cat $'dir\\xff/new'; stat -c %a shut closed").await, "six0\n0");
    let archive = api.get(&format!("/api/sessions/{id}/workspace")).await;
    assert_eq!(archive.status, 200);
    for path in ["caf%E9", "dir%FF/in", "closed", "shut/in"] {
        assert_eq!(api.delete(&format!("{files}/{path}")).await.expect(200)["path"], path);
    }
    assert_eq!(
        shell(&api, &id, "chmod 700 shut; ls shut $'dir\\xff' | grep -v :; cat 'caf%E9'").await,
        "new\n\nnew\nthree"
    );
    let refused = api.delete(&format!("{files}/shut")).await.expect(400)["error"].as_str().unwrap().to_owned();
    assert!(refused.contains("not empty") && refused.contains("recursive=true"), "{refused}");
    assert_eq!(api.delete(&format!("{files}/shut?recursive=true")).await.expect(200)["deleted"], true);
    assert_eq!(shell(&api, &id, "ls -d shut 2>&1 | grep -c 'No such'").await, "1");
    daemon.stop();
}

/// <https://github.com/imtms/tagent-core/issues/77>: a script that is replaced stays executable.
#[tokio::test]
async fn a_replaced_file_keeps_its_mode() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = session(&api).await;
    shell(&api, &id, "printf '#!/bin/sh\\necho 1\\n' > b.sh; chmod 755 b.sh").await;
    let body = json!({"files": [{"path": "b.sh", "content": STANDARD.encode("#!/bin/sh\necho 2\n")}]});
    api.post(&format!("/api/sessions/{id}/files"), body).await.expect(200);
    assert_eq!(shell(&api, &id, "./b.sh; stat -c %a b.sh").await, "2\n755");
    daemon.stop();
}

/// Links in an agent's directory are kept when they stay inside; the deployment lists the others.
#[tokio::test]
async fn links_of_an_agents_directory_are_kept_or_named() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let dir = daemon.agent_dir("linked", &[("CLAUDE.md", "x"), ("skills/a.md", "A")]);
    std::os::unix::fs::symlink("skills/a.md", dir.join("inside.md")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.join("outside")).unwrap();
    let answer = api.post("/api/agents", json!({"name": "linked", "path": dir})).await.expect(201);
    assert_eq!(skipped(&answer), [("outside", "a link that leads out of the directory, to /etc/hostname")]);
    let id = api.session("linked").await;
    assert_eq!(
        shell(&api, &id, "readlink inside.md; cat inside.md; ls outside 2>&1 | grep -c 'No such'").await,
        "skills/a.md\nA1"
    );
    daemon.stop();
}

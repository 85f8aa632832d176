//! What the launcher logs about a session: journal entries with `ASH_SESSION`, or JSON on stderr
//! with the same field.

use ash_model::Limits;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::host::{Host, request};
use crate::journal::{Entry, Journal};

fn says(entry: &Entry, message: &str) -> bool {
    entry.get("MESSAGE").is_some_and(|said| said == message)
}

#[tokio::test]
async fn the_journal_has_the_launchers_part_of_a_sessions_story() {
    let journal = Journal::start();
    let host = Host::start_after("journal", journal.prelude());
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    // After an exec there is no JOURNAL_STREAM, and the log continues there all the same.
    host.signal(Signal::SIGUSR2);
    journal.with("new program", |entry| says(entry, "took over from"));
    // Logged by a fork that closed every inherited descriptor.
    sandbox.freeze().await.unwrap();
    launcher.reclaim(sandbox.id()).await.unwrap();
    journal.with("end of the reclaim", |entry| says(entry, "reclaimed"));
    sandbox.thaw().await.unwrap();
    launcher.destroy(sandbox.id()).await.unwrap();
    let refused = request(host.session(), Limits { pids: 1001, ..Limits::default() });
    let other = refused.id.to_string();
    launcher.create(refused).await.expect_err("1001 > 1000");

    let all = journal.with("refusal", |entry| says(entry, "not created"));
    let of =
        |id: &str| -> Vec<&Entry> { all.iter().filter(|e| e.get("ASH_SESSION").is_some_and(|s| s == id)).collect() };
    let id = sandbox.id().to_string();
    let story: Vec<&str> = of(&id).iter().map(|entry| entry["MESSAGE"].as_str()).collect();
    assert_eq!(story, ["created", "reclaimed", "ended"]);
    for entry in of(&id) {
        assert_eq!(
            (entry["SYSLOG_IDENTIFIER"].as_str(), entry["PRIORITY"].as_str()),
            ("ash-launcher", "5"),
            "{entry:?}"
        );
    }
    assert_eq!(of(&id)[0]["ASH_TENANT"], "default");
    let [refusal] = of(&other)[..] else { panic!("{all:#?}") };
    assert_eq!(refusal["PRIORITY"], "4", "a warning: {refusal:?}");
    assert!(refusal["ERROR"].contains("ceiling 1000"), "{refusal:?}");
    assert_eq!(host.log(), "", "nothing is said twice");
}

#[tokio::test]
async fn without_a_journal_it_is_json_with_the_same_fields() {
    let host = Host::start("json");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    launcher.destroy(sandbox.id()).await.unwrap();
    let log = host.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let id = sandbox.id().to_string();
    let story: Vec<&Value> = lines.iter().filter(|line| line["ASH_SESSION"] == id).collect();
    let messages: Vec<&str> = story.iter().filter_map(|line| line["message"].as_str()).collect();
    assert_eq!(messages, ["created", "ended"], "{log}");
    assert_eq!((&story[0]["level"], &story[0]["ASH_TENANT"]), (&"INFO".into(), &"default".into()), "{log}");
}

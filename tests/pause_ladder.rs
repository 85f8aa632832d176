//! The pause ladder in both directions: the memory of a paused session goes to zram and comes back.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::text;
use common::patience::patient;
use common::procs::private;
use common::swap::Swap;
use common::{Api, Daemon, MIB, Options, procs};

/// Bytes of swap for one session.
const SWAP: u64 = 1 << 30;

async fn verb(api: &Api, id: &str, verb: &str) -> Duration {
    let start = Instant::now();
    api.call("POST", &format!("/api/sessions/{id}/{verb}"), None).await.expect(200);
    start.elapsed()
}

async fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < patient(limit), "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

#[tokio::test]
async fn a_paused_session_of_the_real_claude_keeps_at_most_5_mib_and_goes_on() {
    let swap = Swap::make(SWAP);
    let (daemon, api) =
        Daemon::deployed(Options::default().real_claude().config("[pause]\nreclaim_after_ms = 100")).await;
    let id = api.session("a").await;
    api.turn(&id, "@text remember me").await;
    let awake = private(&daemon, &id);
    assert!(awake > 50 * MIB, "a claude of {awake} bytes");
    let paused = verb(&api, &id, "pause").await;
    let took = within(Duration::from_secs(20), "reclaimed", || private(&daemon, &id) <= 5 * MIB).await;
    within(Duration::from_secs(20), "the worker has ended", || daemon.logs().contains("reclaimed")).await;
    let (left, (held, compressed)) = (private(&daemon, &id), swap.held());
    let frozen = procs::ticks(&daemon, &id);
    let resumed = verb(&api, &id, "resume").await;
    assert!(resumed < patient(Duration::from_secs(1)), "{resumed:?}");
    let start = Instant::now();
    let body = serde_json::json!({"content": "@recall", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    let first = stream.until("text_delta").await;
    let delta = start.elapsed();
    let again = format!("{}{}", first.data["delta"].as_str().unwrap(), text(&stream.rest().await));
    assert!(again.contains("remember me"), "{again}");
    println!(
        "private {} MiB -> {} KiB in {took:?} after a pause of {paused:?}; zram holds {} MiB in {} MiB; resume {resumed:?}, first \
         delta {delta:?}, private after it {} MiB",
        awake / MIB,
        left / 1024,
        held / MIB,
        compressed / MIB,
        private(&daemon, &id) / MIB
    );
    assert!(procs::ticks(&daemon, &id) > frozen);
    // Down and up once more, and then all the way.
    verb(&api, &id, "pause").await;
    within(Duration::from_secs(20), "reclaimed again", || private(&daemon, &id) <= 5 * MIB).await;
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    daemon.stop();
    drop(swap);
}

#[tokio::test]
async fn an_idle_session_gives_its_memory_back_too_and_stays_active() {
    let swap = Swap::make(SWAP);
    let config = "[pause]\nfreeze_after_ms = 300\nreclaim_idle_after_ms = 800";
    let (daemon, api) = Daemon::deployed(Options::default().real_claude().config(config)).await;
    let id = api.session("a").await;
    api.turn(&id, "@text remember me").await;
    assert!(private(&daemon, &id) > 50 * MIB);
    within(Duration::from_secs(20), "reclaimed", || private(&daemon, &id) <= 5 * MIB).await;
    let session = api.get(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!(session["session"]["status"], "active");
    assert!(text(&api.turn(&id, "@recall").await).contains("remember me"));
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    daemon.stop();
    drop(swap);
}

#[tokio::test]
async fn a_resume_in_the_middle_of_it_is_not_held_up_and_ends_it() {
    let swap = Swap::make(SWAP);
    let (daemon, api) = Daemon::deployed(Options::default().config("[pause]\nreclaim_after_ms = 0")).await;
    let (id, other) = (api.session("a").await, api.session("a").await);
    for round in 0..10 {
        verb(&api, &id, "pause").await;
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        let took = verb(&api, &id, "resume").await;
        assert!(took < patient(Duration::from_secs(2)), "{took:?}");
        assert_eq!(text(&api.turn(&id, &format!("@text {round}")).await), round.to_string());
    }
    // Ended while its memory is reclaimed, and another that waits for it.
    verb(&api, &id, "pause").await;
    verb(&api, &other, "pause").await;
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    verb(&api, &other, "resume").await;
    assert_eq!(text(&api.turn(&other, "@text fine").await), "fine");
    daemon.stop();
    drop(swap);
}

#[tokio::test]
async fn without_swap_nothing_is_done_and_that_is_said_once() {
    // A host with its own swap has no warning.
    let expected = usize::from(std::fs::read_to_string("/proc/swaps").unwrap().lines().count() == 1);
    let (daemon, api) = Daemon::deployed(Options::default().config("[pause]\nreclaim_after_ms = 0")).await;
    for _ in 0..2 {
        let id = api.session("a").await;
        verb(&api, &id, "pause").await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(daemon.logs().matches("no free swap").count(), expected, "{}", daemon.logs());
}

#[tokio::test]
async fn a_warm_sandbox_of_the_real_claude_answers_at_once() {
    let (daemon, api) = Daemon::deployed(Options::default().real_claude().config("[pool]\nwarm = 1")).await;
    let ready = async || api.get("/api/agents/a/warm").await.expect(200)["warm"]["ready"] == 1;
    let mut creates = Vec::new();
    for round in 0..4 {
        let start = Instant::now();
        while !ready().await {
            assert!(start.elapsed() < patient(Duration::from_secs(30)), "not warm\n{}", daemon.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let start = Instant::now();
        let id = api.session("a").await;
        let created = start.elapsed();
        let body = serde_json::json!({"content": "@text hello", "includePartialMessages": true});
        let mut stream = api.send(&id, body).await;
        stream.until("text_delta").await;
        creates.push(created);
        println!("round {round}: create {created:?}, to the first delta {:?}", start.elapsed());
        stream.rest().await;
        assert!(text(&api.turn(&id, "@recall").await).contains("@text hello"));
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    }
    assert_eq!(api.get("/health").await.expect(200)["pool"]["preWarmHits"], 4);
    // The target is 5 ms on a quiet machine; a cold start takes hundreds.
    assert!(creates.iter().min().unwrap() < &patient(Duration::from_millis(100)), "{creates:?}");
}

//! Kills all processes repeatedly while sessions run turns, then compares the records.
//!
//! ```text
//!   killer --SIGKILL--> ashd, launcher, gateway, init, claude     (and cuts the clients' streams, pauses, interrupts)
//!   clients (one per session): send, read, rejoin, resume  ----> what was received
//!                                                                     |
//!   checker: received = lines of the stdout file = rows of the database = claude's own record
//! ```
//!
//! Nothing may be lost, duplicated, out of order, hanging or left over. `ASH_FAULT_KILLS` (200)
//! sets the number of kills, `ASH_FAULT_SEED` repeats the choices of a failed run, `ASH_FAULT_KEEP`
//! names a directory for its files.
#![allow(clippy::unwrap_used, missing_debug_implementations)]

mod checker;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod killer;
mod link;
mod rows;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use client::{Client, Toll};
use common::{Daemon, Options, leftovers, procs};
use killer::Killer;
use link::Link;

/// Sessions that run turns at the same time.
const SESSIONS: usize = 6;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn nothing_is_lost_doubled_wedged_or_left_whatever_is_killed() {
    let kills = usize::try_from(number("ASH_FAULT_KILLS").unwrap_or(200)).unwrap();
    let seed = number("ASH_FAULT_SEED").unwrap_or_else(|| u64::from(std::process::id()) | 1);
    println!("ASH_FAULT_SEED={seed} ASH_FAULT_KILLS={kills}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let daemon = Daemon::start(Options::default().parked(1));
    let link = Link::new(daemon.port, &daemon.key);
    runtime.block_on(async { daemon.api().deploy("a").await });

    let mut clients = Vec::new();
    let mut tolls: Vec<Arc<Toll>> = Vec::new();
    for n in 0..SESSIONS {
        let id = runtime.block_on(async { daemon.api().session("a").await });
        let toll = Arc::new(Toll::new(id));
        clients.push(runtime.spawn(Client::new(n, link.clone(), Arc::clone(&toll), seed).run()));
        tolls.push(toll);
    }
    let mut killer = Killer::new(daemon, link.clone(), tolls.clone(), seed, runtime.handle().clone());
    killer.run(kills);
    let (daemon, counts) = killer.done();
    tolls.iter().for_each(|toll| toll.stop.store(true, Ordering::Relaxed));

    let mut faults = Vec::new();
    let mut books = Vec::new();
    for client in clients {
        let book = runtime.block_on(client).expect("a client that does not panic");
        faults.extend(book.faults.iter().cloned());
        books.push(book);
    }
    let rows = runtime.block_on(rows::read(&daemon.data()));
    for (book, toll) in books.iter().zip(&tolls) {
        let listed = runtime.block_on(link.messages(&toll.id));
        faults.extend(checker::check(&daemon.data(), book, toll, &rows[toll.id.as_str()], &listed));
    }
    runtime.block_on(async {
        for toll in &tolls {
            daemon.api().delete(&format!("/api/sessions/{}", toll.id)).await.expect(200);
        }
    });
    // Parked sandboxes belong to no session: only those that earlier daemons left behind are
    // faults.
    daemon.park(0);
    faults.extend(still_there(&daemon, &tolls));
    let frames: usize = books.iter().map(|book| book.frames.len()).sum();
    let turns: usize = books.iter().map(|book| book.turns).sum();
    println!("{counts}; {turns} turns, {frames} frames, {} rejoins", books.iter().map(|b| b.rejoins).sum::<usize>());
    assert!(turns >= SESSIONS, "too few turns ({turns}) for a test of anything");
    // For inspection: the files of a failed run are otherwise removed with its daemon.
    if let (false, Ok(keep)) = (faults.is_empty(), std::env::var("ASH_FAULT_KEEP")) {
        let copied = std::process::Command::new("cp").arg("-a").arg(&daemon.dir).arg(&keep).status();
        println!("{} is copied to {keep}: {copied:?}", daemon.dir.display());
    }
    // The first ones are the causes; the rest are mostly consequences.
    let shown: Vec<&String> = faults.iter().take(20).collect();
    assert!(faults.is_empty(), "ASH_FAULT_SEED={seed}: {} faults\n{shown:#?}", faults.len());
    daemon.stop();
}

/// Processes, cgroups and run directories of sessions that have ended.
fn still_there(daemon: &Daemon, tolls: &[Arc<Toll>]) -> Vec<String> {
    let start = Instant::now();
    loop {
        let mut left: Vec<String> = Vec::new();
        for toll in tolls {
            left.extend(procs::of_session(daemon, &toll.id).iter().map(|p| format!("left over: {p:?}")));
        }
        let groups = leftovers::cgroups(&daemon.cgroup);
        let ours = groups.iter().filter(|dir| tolls.iter().any(|toll| dir.to_string_lossy().contains(&toll.id)));
        left.extend(ours.map(|dir| format!("left over: {}", dir.display())));
        let run = std::fs::read_dir(daemon.run().join("sandboxes")).into_iter().flatten().filter_map(Result::ok);
        left.extend(run.map(|entry| format!("left over: {}", entry.path().display())));
        if left.is_empty() || start.elapsed() > Duration::from_secs(5) {
            return left;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

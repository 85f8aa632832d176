//! Data of one of ashd's processes, or of an earlier one: packets of the launcher, files read after
//! a kill or a power failure.

use ash_gateway::ledger::Ledger;
use ash_launcher::rundir::RunDir;
use ash_launcher::settings::Ceiling;
use ash_launcher::uids::Uids;
use ash_protocol::launcher::{Reply, Request, is_version};
use ashd::sessions::claude::message::UserLine;
use ashd::sessions::claude::process_record::ProcessRecord;
use ashd::sessions::claude::{Conversation, LaunchOptions, ProcessFlags, argv};
use ashd::sessions::workspace::layout::SessionDir;
use uuid::Uuid;

use crate::harness::Target;

/// Requests and replies of the launcher. `tests/kernel_hostile/fuzz.rs` shows that it survives any
/// request.
pub fn launcher_packets() -> Target {
    const WORDS: &[&str] = &[
        "\"op\"",
        "\"create\"",
        "\"destroy\"",
        "\"set_limits\"",
        "\"limits\"",
        "\"tenant\"",
        "\"claude\"",
        "\"version\"",
        "\"reply\"",
        "\"sandbox\"",
        "\"victims\"",
        "\"cgroup\"",
        "\"steps\"",
    ];
    Target::new(WORDS, |input| {
        if let Ok(request) = serde_json::from_slice::<Request>(input) {
            if let Request::Create(create) = &request {
                Ceiling::default().exceeded(&create.limits);
            }
            serde_json::to_vec(&request).expect("JSON");
        }
        if let Ok(reply) = serde_json::from_slice::<Reply>(input) {
            serde_json::to_vec(&reply).expect("JSON");
        }
        is_version(&String::from_utf8_lossy(input));
    })
}

/// `sandbox.json` and the files of uids, as a launcher reads them at its start.
pub fn launcher_records() -> Target {
    const WORDS: &[&str] = &["\"id\"", "\"pid\"", "\"uid\"", "\"start_time\"", "\"limits\"", "\"cgroup\"", "\n"];
    let run = tempfile::tempdir_in("/run").expect("a directory that is root's alone");
    let shared = run.path().join("uids");
    let open = RunDir::open(run.path(), 0, 0).expect("a run directory");
    let id = Uuid::nil();
    let record = run.path().join("sandboxes").join(id.to_string()).join("sandbox.json");
    std::fs::create_dir_all(record.parent().expect("a directory")).expect("made");
    Target::new(WORDS, move |input| {
        let _kept = &run;
        std::fs::write(&record, input).expect("written");
        let known = open.recorded(id);
        assert!(known.as_ref().is_none_or(|info| info.id == id));
        assert_eq!(open.ids().expect("listed"), [id]);
        std::fs::create_dir_all(&shared).expect("made");
        for name in ["1900000000", "1900000003", "next-1900000000-100", "x"] {
            std::fs::write(shared.join(name), input).expect("written");
        }
        let mut uids = Uids::open(&shared, 1_900_000_000, 100, run.path()).expect("opened");
        if let Some(info) = known {
            uids.keep(info.uid, id);
        }
        let (uid, init) = uids.take(Uuid::max()).expect("files can be written").expect("not all are taken");
        assert!((1_900_000_000..1_900_000_100).contains(&uid) && init == uid + 1);
        uids.release(Uuid::max());
        std::fs::remove_dir_all(&shared).expect("removed");
    })
}

/// A ledger of usage after kill -9 or a power failure.
pub fn ledger() -> Target {
    const WORDS: &[&str] = &["\"n\":", "\"at\":", "\"session\":", "\"tenant\":", "\"requests\":", "\"input\":", "}\n{"];
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let ledger = Ledger::open(directory.path()).expect("a ledger");
    let id = Uuid::from_u128(7);
    let path = directory.path().join(format!("{id}.jsonl"));
    Target::new(WORDS, move |input| {
        let _kept = &directory;
        std::fs::write(&path, input).expect("written");
        let collected = ledger.collect(&[(id, 1)].into()).expect("read");
        let numbers: Vec<u64> =
            collected.entries.iter().filter(|(of, _)| *of == id).map(|(_, entry)| entry.n).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|n| *n > 1), "each once: {numbers:?}");
        if let Some(last) = numbers.last() {
            let again = ledger.collect(&[(id, *last)].into()).expect("read");
            assert!(again.entries.iter().all(|(of, _)| *of != id), "what is acknowledged does not come again");
        }
    })
}

/// `process.json` of a session, and JSON of rows that an older ashd may have written.
pub fn stored_rows() -> Target {
    const WORDS: &[&str] = &[
        "\"permissionMode\"",
        "\"mcpServers\"",
        "\"allowedTools\"",
        "\"systemPrompt\"",
        "\"env\"",
        "\"subagents\"",
        "\"flags\"",
        "\"maxTurns\"",
        "\"jsonSchema\"",
        "\"content\"",
        "\"type\"",
    ];
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let session = SessionDir::new(directory.path(), Uuid::nil());
    let file = session.process();
    std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
    Target::new(WORDS, move |input| {
        let _kept = &directory;
        std::fs::write(&file, input).expect("written");
        let flags = ProcessRecord::read(&session).ok().flatten().map_or_else(ProcessFlags::default, |read| read.flags);
        if let Ok(options) = serde_json::from_slice::<LaunchOptions>(input) {
            options.check().ok();
            for conversation in [Conversation::New(Uuid::nil()), Conversation::Resumed(Uuid::nil())] {
                argv("claude", &options, conversation, &flags);
            }
        }
        if let Ok(text) = std::str::from_utf8(input)
            && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
            && let Ok(line) = UserLine::again(text.to_owned().into(), Uuid::nil())
        {
            let mut out = Vec::new();
            line.write(&mut out).expect("written");
            assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
        }
    })
}

//! Data from a payload: claude's output, the report of the probe, packets of init, names of
//! processes.

use std::io::Write;
use std::os::unix::fs::FileExt;

use ash_kernel::probe::Measured;
use ash_kernel::{kmsg, procfs};
use ash_model::Layer;
use ash_protocol::init::{FromInit, Numbered, SpawnSpec};
use ash_protocol::launcher::MAX_PACKET;
use ashd::sandbox::confinement::{Floor, Outside, Report};
use ashd::sessions::claude::classify::{Classifier, Kind};
use ashd::sessions::claude::{PermissionMode, answer_permission};
use ashd::sessions::quota::history_cap::HistoryCap;
use ashd::sessions::stream::abridge::{Abridger, Bounds};
use ashd::sessions::stream::frames::{END, frames, long_frames, piece_of};
use ashd::sessions::stream::inotify::Hub;
use ashd::sessions::stream::read_lines::{Piece, begins_line, of_long_line, whole_lines};
use ashd::sessions::stream::tail::Tail;
use bytes::BytesMut;
use serde_json::Value;

use crate::harness::Target;

const STREAM_JSON: &[&str] = &[
    "\"type\"",
    "\"subtype\"",
    "\"message\"",
    "\"content\"",
    "\"text\"",
    "\"thinking\"",
    "\"tool_use\"",
    "\"tool_result\"",
    "\"tool_use_id\"",
    "\"is_error\"",
    "\"assistant\"",
    "\"user\"",
    "\"system\"",
    "\"init\"",
    "\"result\"",
    "\"success\"",
    "\"error_max_turns\"",
    "\"num_turns\"",
    "\"total_cost_usd\"",
    "\"duration_ms\"",
    "\"errors\"",
    "\"user_message_uuids\"",
    "\"terminal_reason\"",
    "\"stream_event\"",
    "\"event\"",
    "\"delta\"",
    "\"content_block_delta\"",
    "\"text_delta\"",
    "\"control_request\"",
    "\"control_response\"",
    "\"request_id\"",
    "\"request\"",
    "\"response\"",
    "\"can_use_tool\"",
    "\"input\"",
    "\"tool_name\"",
    "\"command_lifecycle\"",
    "\"background_tasks_changed\"",
    "\"tasks\"",
    "\"isReplay\"",
    "{\"type\":\"text\",\"text\":\"x\"},",
];

/// Each SSE frame of `out` is an id, an event and one line of data: no line of a payload forges
/// another.
fn check_frames(out: &[u8]) {
    let text = std::str::from_utf8(out).expect("frames are UTF-8");
    assert!(!text.contains('\r') && !text.contains(['\u{2028}', '\u{2029}', '\u{85}']), "a raw line end: {text:?}");
    for frame in text.split("\n\n").filter(|frame| !frame.is_empty()) {
        let lines: Vec<&str> = frame.split('\n').collect();
        let [id, event, data] = lines[..] else { panic!("a frame of {} lines: {frame:?}", lines.len()) };
        assert!(id.starts_with("id: ") && event.starts_with("event: "), "{frame:?}");
        serde_json::from_str::<&serde_json::value::RawValue>(data.strip_prefix("data: ").expect(frame)).expect(frame);
    }
}

/// One line: driver, history and readers process it, and claude's requests are answered.
pub fn claude_line() -> Target {
    let mut classifier = Classifier::default();
    let mut cap = HistoryCap::default();
    let mut lines = 0_u64;
    Target::new(STREAM_JSON, move |input| {
        lines += 1;
        let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut classified = classifier.classify(line);
        for (_, text) in classified.messages.iter() {
            serde_json::from_str::<&serde_json::value::RawValue>(text).expect("a row of the history is JSON");
        }
        for (_, data) in &classified.events {
            serde_json::from_str::<&serde_json::value::RawValue>(data).expect("an event's data is JSON");
        }
        match &classified.kind {
            Kind::ControlRequest { raw, request_id, .. } => {
                for mode in
                    [PermissionMode::BypassPermissions, PermissionMode::PermissionsByAgent, PermissionMode::Default]
                {
                    let answer = answer_permission(mode, request_id, raw);
                    let one = answer.strip_suffix(b"\n").expect("a line");
                    assert!(!one.contains(&b'\n') && !one.contains(&b'\r'), "an answer is one line");
                    serde_json::from_slice::<&serde_json::value::RawValue>(one).expect("an answer is JSON");
                }
            }
            Kind::Result(result) => drop((result.failure(), result.spent(), result.interrupted())),
            _ => {}
        }
        if lines.is_multiple_of(64) {
            cap.reset();
        }
        cap.bound(&mut classified, lines, lines.is_multiple_of(7));
        for partial in [false, true] {
            let mut out = BytesMut::new();
            frames(line, 1, 0, 0, partial, &mut out);
            check_frames(&out);
        }
    })
    // Every content block becomes a frame, an event and a remembered name.
    .heap(8 << 20, 64)
}

/// One line that is too long to be held, piece by piece.
pub fn long_line() -> Target {
    let small = Bounds { string: 40, answer: 200, member: 200, large: 400, rest: 300 };
    Target::new(STREAM_JSON, move |input| {
        let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let is_object = serde_json::from_slice::<&serde_json::value::RawValue>(line)
            .is_ok_and(|raw| raw.get().trim_start().starts_with('{'));
        for bounds in [small, Bounds::LINE] {
            let kept = |step: usize| {
                let mut abridger = Abridger::new(bounds);
                line.chunks(step).for_each(|piece| abridger.feed(piece));
                abridger.finish(0, "a reason")
            };
            let abridged = kept(line.len().max(1));
            assert_eq!(abridged, kept(7), "the same however it is cut");
            // serde_json stops at 128 levels, and at invalid UTF-8.
            assert!(!is_object || abridged.is_some(), "an object is kept");
            let Some(abridged) = abridged else { continue };
            let most = 30 * bounds.member + 2 * bounds.large + bounds.rest + 4096;
            assert!(abridged.len() <= most, "{} bytes are kept, more than {most}", abridged.len());
            Classifier::default().classify_abridged(&abridged);
            let mut out = BytesMut::new();
            if !is_object || !long_frames(&abridged, 1, 0, 0, true, &mut out) {
                continue;
            }
            let mut rest = Vec::new();
            for (at, piece) in line.chunks(5).enumerate() {
                rest.extend_from_slice(piece);
                let taken = piece_of(&rest, (at + 1) * 5 >= line.len(), &mut out);
                rest.drain(..taken);
            }
            out.extend_from_slice(END);
            check_frames(&out);
        }
    })
}

/// A whole output file, followed by the driver and by readers while it changes.
pub fn output_file() -> Target {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let hub = runtime.block_on(async { Hub::start() }).expect("inotify");
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    Target::new(STREAM_JSON, move |input| {
        let path = directory.path().join("stdout");
        let mut file =
            std::fs::OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).expect("a file");
        let half = input.len() / 2;
        file.write_all(&input[..half]).expect("written");
        let mut tail = Tail::open(directory.path(), 0, &hub).expect("there");
        let mut classifier = Classifier::default();
        let mut follow = |tail: &mut Tail| {
            while let Ok(Some(batch)) = tail.drain() {
                for (start, next, line) in batch.lines() {
                    assert!(start < next, "lines go forward");
                    classifier.classify(line);
                }
            }
        };
        follow(&mut tail);
        file.write_all(&input[half..]).expect("written");
        follow(&mut tail);
        let end = tail.offset();
        let mut at = 0;
        while at < end {
            match whole_lines(&file, at, end) {
                Ok(Piece::Lines(bytes)) => at += bytes.len() as u64,
                Ok(Piece::Long) => break,
                Err(error) => panic!("at {at} of {end}: {error}"),
            }
        }
        begins_line(&file, end).expect("readable");
        of_long_line(&file, 0, 0, end).ok();
        // Changed from outside: truncated, rewritten.
        file.set_len(half as u64 / 2).expect("cut");
        follow(&mut tail);
        whole_lines(&file, 0, end).ok();
        file.write_all_at(input, 0).expect("rewritten");
        follow(&mut tail);
        whole_lines(&file, 0, input.len() as u64).ok();
    })
}

pub fn probe_report() -> Target {
    const WORDS: &[&str] = &["\"landlockAbi\"", "\"probes\"", "\"layer\"", "\"landlock\"", "\"uidMap\"", "[0,0,0]"];
    Target::new(WORDS, |input| {
        let Ok(measured) = serde_json::from_slice::<Measured>(input) else { return };
        let floor = Floor { layers: Layer::ALL.to_vec(), landlock_abi: 2 };
        let report = Report::new(measured, Outside::default(), &floor, String::new(), 1);
        assert!(!report.confined, "nothing was seen from outside: no limit is in force");
        drop((report.missing(), report.broken(), serde_json::to_vec(&report).expect("JSON")));
    })
}

/// Packets between ashd and a sandbox's init, both ways.
pub fn init_packets() -> Target {
    const WORDS: &[&str] =
        &["\"op\"", "\"spawn\"", "\"signal\"", "\"deliver\"", "\"stat\"", "\"listener\"", "\"kind\"", "\"exited\""];
    fn back<T: serde::Serialize + serde::de::DeserializeOwned>(input: &[u8]) {
        if let Ok(packet) = serde_json::from_slice::<T>(input) {
            let again = serde_json::to_vec(&packet).expect("JSON");
            serde_json::from_slice::<T>(&again).expect("what is sent is understood");
        }
    }
    Target::new(WORDS, |input| {
        // No packet is larger.
        let input = &input[..input.len().min(MAX_PACKET)];
        back::<Numbered>(input);
        back::<FromInit>(input);
        back::<SpawnSpec>(input);
    })
}

/// Kernel texts with a name that the payload chose: the kernel log, and files of /proc.
pub fn kernel_texts() -> Target {
    const WORDS: &[&str] =
        &["Killed process ", "ut of memory: ", ") total-vm:", "anon-rss:", "kB", "UID:", "Uid:\t", ") S 1 "];
    Target::new(WORDS, |input| {
        let text = String::from_utf8_lossy(input);
        for line in text.lines() {
            kmsg::parse(line);
            kmsg::takes_its_group(line);
        }
        procfs::parse_start_time(&text);
        procfs::parse_uids(&text);
    })
}

/// JSON texts of client and payload as they are stored: raw, never as a tree.
pub fn raw_json() -> Target {
    use ash_model::raw::{RawJson, RawObject, elements, kind, members, on_one_line, text};
    Target::new(STREAM_JSON, |input| {
        let Ok(input) = std::str::from_utf8(input) else { return };
        let known = serde_json::from_str::<Value>(input);
        assert!(known.is_err() || RawJson::parse(input).is_ok(), "what is JSON is taken");
        members(input, |_, value| drop(text(value)));
        elements(input, |_| true);
        let Ok(raw) = RawJson::parse(input) else { return };
        let one = on_one_line(raw.get());
        assert!(!one.contains(['\n', '\r']), "one line");
        RawJson::parse(one.into_owned()).expect("the same value");
        kind(raw.get());
        if let Some(mut object) = RawObject::read(&raw) {
            object.set("a", RawJson::default());
            object.remove("b");
            RawJson::parse(serde_json::to_string(&object).expect("JSON")).expect("JSON");
        }
    })
}

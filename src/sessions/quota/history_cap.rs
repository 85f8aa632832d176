//! How much of claude's output goes into the history. The stream passes everything on unchanged;
//! the database keeps a bounded part.
//!
//! ```text
//!   a line of more than LINE bytes      -> abridged before it comes here, like an event or message
//!                                          that became longer
//!   more than TURN bytes of one turn    -> one stub for the rest of the turn; only its results are
//!                                          kept (RESULTS at most)
//!   the tenant's storage limit reached  -> the same, and the turn is interrupted
//! ```
//!
//! The raw line stays in the session's output file while that is kept (64 MiB before the newest
//! line). Stream clients, also with `Last-Event-ID`, read it whole.

use serde_json::json;

use crate::sessions::claude::classify::{Classified, Kind};
use crate::sessions::claude::omitted::{LONG_LINE, abridged, omitted};
use crate::sessions::stream::abridge::Bounds;
use crate::sessions::stream::tail::WHOLE_BYTES;
use crate::store::Role;

/// Bytes of one message or event that are kept whole. Lines are no longer, but invalid UTF-8 grows.
const LINE: usize = WHOLE_BYTES as usize;
/// Bytes that one turn adds to the history before the rest is left out.
pub const TURN: u64 = 64 << 20;
/// Bytes for the ends of turns while the tenant's storage is full.
const WHILE_FULL: u64 = 64 << 10;
/// Bytes of a result that is kept whole meanwhile.
const RESULT: usize = 16 << 10;
/// Results of one turn kept beyond its bytes. A turn has one, plus those of turns broken off
/// before.
const RESULTS: u32 = 16;
/// Reason in a stub while the storage is full.
const FULL: &str = "the tenant's storage limit is reached";
/// Accounted overhead of a row beside its text.
const ROW: u64 = 256;

/// What one turn has added.
#[derive(Debug, Default)]
pub struct HistoryCap {
    added: u64,
    /// The stub for the rest was written.
    closed: bool,
    /// Results kept after that.
    results: u32,
    /// Bytes added while the tenant's storage is full, over all turns.
    while_full: u64,
}

/// What was left out of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    All,
    /// Something in it was too long.
    Part,
    /// Nothing is kept from now on until the turn ends.
    Stopped,
}

impl HistoryCap {
    /// A turn begins.
    pub fn reset(&mut self) {
        *self = Self { while_full: self.while_full, ..Self::default() };
    }

    /// Bytes of one line's rows, for the tenant's account.
    pub fn weigh(classified: &Classified) -> u64 {
        let message = classified.messages.iter().map(|(_, text)| text.len() as u64 + ROW).sum::<u64>();
        message + classified.events.iter().map(|(_, data)| data.len() as u64 + ROW).sum::<u64>()
    }

    fn count(&mut self, classified: &Classified, full: bool) {
        let bytes = Self::weigh(classified);
        self.added += bytes;
        self.while_full += if full { bytes } else { 0 };
    }

    /// Bounds what this line adds. `offset`: where it begins in the session's output. `full`: the
    /// tenant's storage limit is reached.
    pub fn bound(&mut self, classified: &mut Classified, offset: u64, full: bool) -> Kept {
        if !full {
            self.while_full = 0;
        } else if self.while_full > WHILE_FULL {
            (classified.messages, classified.events) = (None, Vec::new());
            return Kept::Stopped;
        }
        let (longest, bounds, why) =
            if full { (RESULT, Bounds::RESULT, FULL) } else { (LINE, Bounds::LINE, LONG_LINE) };
        let mut kept = Kept::All;
        let messages = classified.messages.iter_mut().map(|(_, text)| text);
        let events = classified.events.iter_mut().map(|(_, data)| data);
        for text in messages.chain(events).filter(|text| text.len() > longest) {
            kept = Kept::Part;
            let short = abridged(text, bounds, offset, why);
            *text = short.unwrap_or_else(|| stub(&classified.kind, text.len(), offset, why)).into();
        }
        let over = self.closed || full || self.added + Self::weigh(classified) > TURN;
        let kept_anyway = over && matches!(classified.kind, Kind::Result(_)) && self.results < RESULTS;
        self.results += u32::from(kept_anyway);
        if over && !kept_anyway {
            if Self::weigh(classified) == 0 {
                return kept;
            }
            let why = if full { FULL } else { "the turn exceeds the history limit of 64 MiB" };
            let first = !std::mem::replace(&mut self.closed, true);
            let bytes = classified.messages.as_ref().map_or(0, |(_, text)| text.len());
            classified.messages = first.then(|| (Role::Assistant, stub(&classified.kind, bytes, offset, why).into()));
            classified.events.clear();
            self.count(classified, full);
            return Kept::Stopped;
        }
        self.count(classified, full);
        if full { Kept::Stopped } else { kept }
    }
}

/// Replaces a message.
fn stub(kind: &Kind, bytes: usize, offset: u64, why: &str) -> String {
    let kind = match kind {
        Kind::User { .. } => "user",
        Kind::Result(_) => "result",
        _ => "assistant",
    };
    json!({ "type": kind, "omitted": omitted(bytes as u64, offset, why) }).to_string()
}

/// The beginning of a text, with a note on the rest.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{} [... {} of {} bytes left out]", &text[..end], text.len() - end, text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::sessions::claude::classify::classify;

    fn answer(bytes: usize) -> Classified {
        let text = "x".repeat(bytes);
        classify(
            json!({"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}})
                .to_string()
                .as_bytes(),
        )
    }

    fn result(bytes: usize) -> Classified {
        let text = "r".repeat(bytes);
        classify(json!({"type": "result", "subtype": "success", "num_turns": 1, "result": text}).to_string().as_bytes())
    }

    #[test]
    fn what_is_short_is_kept_as_it_came() {
        let (mut cap, mut line) = (HistoryCap::default(), answer(100_000));
        let before = line.clone();
        assert_eq!(cap.bound(&mut line, 7, false), Kept::All);
        assert_eq!(line, before);
    }

    #[test]
    fn a_long_line_is_abridged_and_names_its_size() {
        let (mut cap, mut line) = (HistoryCap::default(), answer(5 << 20));
        assert_eq!(cap.bound(&mut line, 77, false), Kept::Part);
        assert!(HistoryCap::weigh(&line) < 70 << 10, "both the message and the event");
        let kept: Value = serde_json::from_str(&line.messages.unwrap().1).unwrap();
        assert_eq!((&kept["type"], &kept["omitted"]["outputOffset"]), (&json!("assistant"), &json!(77)));
        assert!(kept["omitted"]["bytes"].as_u64().unwrap() > 5 << 20);
        assert!(kept["message"]["content"][0]["text"].as_str().unwrap().ends_with("[cut by ashd, 5242880 bytes]"));
        assert_eq!(cap.bound(&mut answer(10), 78, false), Kept::All, "the turn continues");
    }

    #[test]
    fn a_long_turn_leaves_one_stub_and_its_result() {
        let (mut cap, mut total, mut stubs) = (HistoryCap::default(), 0, 0);
        for n in 0..100 {
            let mut line = answer(1 << 20);
            stubs += u32::from(cap.bound(&mut line, n, false) == Kept::Stopped && line.messages.is_some());
            total += HistoryCap::weigh(&line);
        }
        assert!(total <= TURN + 4096, "{total}");
        assert_eq!(stubs, 1);
        let mut end = result(1000);
        cap.bound(&mut end, 9, false);
        assert!(
            end.messages.is_some()
                && end.events.iter().any(|(kind, data)| *kind == "turn_complete" && data.len() > 1000)
        );
        // A process prints more of them than a turn has.
        let more: u64 = (0..1000)
            .map(|n| {
                let mut end = result(1000);
                cap.bound(&mut end, n, false);
                HistoryCap::weigh(&end)
            })
            .sum();
        assert!(more < 64 << 10, "{more}");
        cap.reset();
        assert_eq!(cap.bound(&mut answer(10), 1, false), Kept::All, "the next turn starts at zero");
    }

    #[test]
    fn a_long_result_keeps_its_beginning() {
        let (mut cap, mut end) = (HistoryCap::default(), result(8 << 20));
        cap.bound(&mut end, 9, false);
        let (_, data) = end.events.iter().find(|(kind, _)| *kind == "turn_complete").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        let text = data["result"].as_str().unwrap();
        assert!(text.starts_with("rrr") && text.ends_with(" [cut by ashd, 8388608 bytes]"));
        assert!(text.len() > 250 << 10 && text.len() <= 256 << 10, "{}", text.len());
        assert_eq!((&data["numTurns"], &data["omitted"]["outputOffset"]), (&json!(1), &json!(9)));
        assert!(HistoryCap::weigh(&end) < 520 << 10, "the message and the event");
    }

    #[test]
    fn a_full_tenant_keeps_nothing_more_and_says_so_once() {
        let mut cap = HistoryCap::default();
        let mut line = answer(10);
        assert_eq!(cap.bound(&mut line, 1, true), Kept::Stopped);
        assert!(line.messages.unwrap().1.contains("storage limit") && line.events.is_empty());
        let mut line = answer(10);
        assert_eq!(cap.bound(&mut line, 2, true), Kept::Stopped);
        assert!(line.messages.is_none());
        // Many turns with many results stay bounded as well.
        let mut total = 0;
        for n in 0..200 {
            cap.reset();
            let mut end = result(20_000);
            cap.bound(&mut end, n, true);
            total += HistoryCap::weigh(&end);
        }
        assert!(total <= 2 * WHILE_FULL, "{total}");
        assert_eq!(cap.bound(&mut answer(10), 1, false), Kept::All, "the storage has space again");
    }

    #[test]
    fn a_text_is_cut_between_two_characters() {
        assert_eq!(cut("äbc", 1), " [... 4 of 4 bytes left out]");
        assert_eq!(cut("äbc", 3), "äb [... 1 of 4 bytes left out]");
        assert_eq!(cut("äbc", 4), "äbc");
    }
}

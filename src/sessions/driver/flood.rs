//! Bounds the unsolicited work of a process, and ends it above the bound.
//!
//! ```text
//!   line that begins an unasked turn --+
//!   line that asks for permission -----+--> within the allowance --> done
//!                                      +--> above it --> rest of the batch unread
//!                                           --> sandbox ended, output so far skipped,
//!                                               session in `error` (or parked)
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::Driver;
use crate::sandbox::LauncherError;
use crate::sessions::launch::running::IN_MEMORY;
use crate::sessions::policy::allowance::Allowance;

/// Unasked turns. claude begins one when a background task ends, and answers it before the next.
const TURNS: (u32, f64) = (60, 1.0);
/// Permission requests. claude makes a few at a time and waits for the answers.
const QUESTIONS: (u32, f64) = (200, 20.0);
/// Refusals of ashd's own requests that are logged.
const REFUSALS: (u32, f64) = (20, 0.1);
/// Bytes of a payload's text in one log entry.
const LOGGED: usize = 128;
/// Bytes at the end of the output that are searched for the last line end.
const LAST_LINE: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct Allowances {
    turns: Allowance,
    questions: Allowance,
    refusals: Allowance,
    /// Why the process is ended; its further output is not read.
    over: Option<String>,
}

impl Default for Allowances {
    fn default() -> Self {
        let new = |(burst, per_second)| Allowance::new(burst, per_second);
        Self { turns: new(TURNS), questions: new(QUESTIONS), refusals: new(REFUSALS), over: None }
    }
}

impl Allowances {
    /// An unasked turn begins.
    pub fn turn(&mut self) {
        if !self.turns.take(Instant::now()) {
            self.exceeded("began unasked turns", TURNS);
        }
    }

    /// A permission request must be answered.
    pub fn question(&mut self) {
        if !self.questions.take(Instant::now()) {
            self.exceeded("requested permissions", QUESTIONS);
        }
    }

    /// Whether a refusal is logged.
    pub fn refusal(&mut self) -> bool {
        self.refusals.take(Instant::now())
    }

    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    fn exceeded(&mut self, what: &str, (burst, per_second): (u32, f64)) {
        let why = format!(
            "a process in the sandbox {what} too often (limit: {burst} at once, then {per_second} per second); the sandbox was \
             ended. Resume the session to continue"
        );
        self.over.get_or_insert(why);
    }
}

/// A payload's text as it is logged.
pub(super) fn logged(text: &str) -> &str {
    &text[..text.floor_char_boundary(LOGGED)]
}

impl Driver {
    /// Ends a process above its allowance. Skips its unread output, so that no later process is
    /// charged for it.
    pub(super) async fn end_flood(&mut self) {
        let Some(why) = self.allowances.over.take() else { return };
        self.allowances = Allowances::default();
        self.shared.remove_sandbox(self.session.id).await;
        match end_of_lines(&self.dir.stdout()) {
            Ok(end) => {
                if let Some(live) = &mut self.live {
                    live.read_to = live.read_to.max(end);
                }
                self.ledger.saw(end);
            }
            Err(e) => tracing::warn!(ASH_SESSION = %self.session.id, "cannot find the end of the output: {e}"),
        }
        self.fell(why, "output").await;
    }

    /// Answers claude's requests in order, up to the first failure: init waits for none of them, so
    /// the next would only wait as long.
    pub(super) async fn answer_questions(&mut self, answers: Vec<Vec<u8>>) {
        let Some(live) = &mut self.live else { return };
        for line in answers {
            let answered = if live.frozen {
                live.answer_later(line);
                Ok(())
            } else if line.len() <= IN_MEMORY {
                live.deliver_line(&line).await
            } else {
                match on_disk(&self.dir, line).await {
                    Ok(file) => live.deliver_file(file).await,
                    Err(e) => Err(LauncherError::Protocol(format!("cannot write the answer: {e}"))),
                }
            };
            if let Err(e) = answered {
                tracing::warn!(ASH_SESSION = %self.session.id, "cannot answer a request of claude: {e}");
                return;
            }
        }
    }
}

/// A large answer must not hold memory of ashd until the process reads it, which may be never.
async fn on_disk(dir: &crate::sessions::workspace::layout::SessionDir, line: Vec<u8>) -> io::Result<File> {
    let dir = dir.clone();
    let written = tokio::task::spawn_blocking(move || dir.unnamed(|file| file.write_all(&line))).await;
    written.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// End of the last whole line of a file; the end of the file, when no line ends in its last 4 MiB.
fn end_of_lines(path: &std::path::Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LAST_LINE);
    let mut last = vec![0; usize::try_from(length - from).unwrap_or_default()];
    file.read_exact_at(&mut last, from)?;
    Ok(last.iter().rposition(|byte| *byte == b'\n').map_or(length, |at| from + at as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_and_questions_have_a_bound_and_the_cause_is_kept() {
        let mut allowances = Allowances::default();
        (0..TURNS.0).for_each(|_| allowances.turn());
        (0..QUESTIONS.0).for_each(|_| allowances.question());
        assert!(!allowances.is_over());
        (0..5).for_each(|_| allowances.turn());
        (0..1000).for_each(|_| allowances.question());
        assert!(allowances.over.as_ref().is_some_and(|why| why.contains("60 at once")), "{:?}", allowances.over);
        assert_eq!((0..100).filter(|_| allowances.refusal()).count(), 20);
    }

    #[test]
    fn what_is_logged_of_a_payload_is_short_and_whole_characters() {
        assert_eq!(logged("short"), "short");
        assert_eq!(logged(&"ü".repeat(1000)).len(), LOGGED);
        assert_eq!(logged(&format!("a{}", "ü".repeat(1000))).len(), LOGGED - 1);
    }

    #[test]
    fn output_is_skipped_to_the_end_of_a_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, end) in [("", 0), ("a\nb\n", 4), ("a\nb", 2), ("abc", 3)] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(end_of_lines(file.path()).unwrap(), end, "{text:?}");
        }
    }
}

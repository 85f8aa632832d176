//! `/api/sessions/{id}/logs`: claude's stderr.
//!
//! An entry's index is the offset of its line in the file. It is stable and increasing, and the
//! cost of reading on from it does not depend on the size of the log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::args::{Args, OwnSession};
use super::error::{ApiError, ErrorBody};
use super::files::beneath;
use super::threads::blocking;
use ash_model::iso;

/// Maximum entries, and maximum bytes read, per answer. Continue with `after`.
const MAX_ENTRIES: usize = 1000;
const MAX_BYTES: u64 = 1 << 20;

/// One line.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LogEntry {
    /// Increases from line to line, not by one.
    pub index: u64,
    /// `stderr`.
    #[schema(example = "stderr")]
    pub level: &'static str,
    pub text: String,
    /// When the log was last written to; lines have no time of their own.
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub ts: String,
}

/// Lines in order.
#[derive(Debug, Serialize, ToSchema)]
pub struct LogsBody {
    pub logs: Vec<LogEntry>,
    #[schema(example = "sandbox")]
    pub source: &'static str,
}

/// Get the stderr of a session's claude
///
/// At most 1000 lines and 1 MiB per answer. Continue with `after` set to the last index.
#[utoipa::path(
    get, path = "/api/sessions/{id}/logs", tag = "sessions",
    params(
        ("id" = Uuid, Path),
        ("after" = Option<i64>, Query, description = "Only lines with a greater index (default -1)", minimum = -1),
    ),
    responses((status = 200, body = LogsBody), (status = 404, description = "Session not found", body = ErrorBody))
)]
pub async fn logs(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    args: Args,
) -> Result<Json<LogsBody>, ApiError> {
    let after = args.int("after", -1..=i64::MAX)?.unwrap_or(-1);
    let workspace = state.sessions.workspace(session.id());
    let logs = blocking(move || {
        let failed = |cause: io::Error| ApiError::internal("the log cannot be read", &cause);
        let directory = workspace.parent().unwrap_or(&workspace);
        let root = match beneath::root(directory) {
            Ok(root) => root,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(failed(cause)),
        };
        match beneath::read(&root, Path::new("stderr")) {
            Ok((file, _)) => lines(file, u64::try_from(after).ok()).map_err(failed),
            Err(beneath::Refused::NotFound) => Ok(Vec::new()),
            Err(why) => Err(failed(io::Error::other(why))),
        }
    })
    .await?;
    Ok(Json(LogsBody { logs, source: "sandbox" }))
}

/// The lines after the one that starts at `after`.
fn lines(mut file: File, after: Option<u64>) -> io::Result<Vec<LogEntry>> {
    let written = file.metadata()?.modified()?;
    let ts = jiff::Timestamp::try_from(written).map_or(0, |at| at.as_millisecond());
    let mut at = after.unwrap_or(0);
    file.seek(SeekFrom::Start(at))?;
    let mut file = BufReader::new(file.take(MAX_BYTES));
    let mut entries = Vec::new();
    let mut skip = after.is_some();
    let mut line = Vec::new();
    while entries.len() < MAX_ENTRIES {
        line.clear();
        let length = file.read_until(b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        if !std::mem::take(&mut skip) {
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
            entries.push(LogEntry { index: at, level: "stderr", text, ts: iso(ts) });
        }
        at += length as u64;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn log(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn read(bytes: &[u8], after: Option<u64>) -> Vec<(u64, String)> {
        lines(log(bytes), after).unwrap().into_iter().map(|entry| (entry.index, entry.text)).collect()
    }

    #[test]
    fn an_index_is_a_place_to_go_on_from() {
        let bytes = b"one\n\xfftwo\nthree";
        let all = [(0, "one".to_owned()), (4, "\u{fffd}two".to_owned()), (9, "three".to_owned())];
        assert_eq!(read(bytes, None), all);
        assert_eq!(read(bytes, Some(0)), all[1..]);
        assert_eq!(read(bytes, Some(9)), []);
        assert_eq!(read(bytes, Some(999)), []);
        assert_eq!(read(b"", None), []);
    }

    #[test]
    fn a_long_log_comes_in_parts_without_loss() {
        let bytes: Vec<u8> = (0..2500).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let (mut after, mut got) = (None, Vec::new());
        loop {
            let part = read(&bytes, after);
            let Some((last, _)) = part.last() else { break };
            assert!(part.len() <= MAX_ENTRIES);
            after = Some(*last);
            got.extend(part.into_iter().map(|(_, text)| text));
        }
        assert_eq!(got, (0..2500).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

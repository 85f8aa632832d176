//! Whole lines out of the middle of a file, for readers that replay.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::lines::LINE_BYTES;

/// Bytes read at once: large enough that the system call costs nothing beside parsing, small enough that one reader
/// never holds a thread for more than about a millisecond.
pub const PIECE_BYTES: u64 = 256 * 1024;

/// The whole lines from `from` on, at most [`PIECE_BYTES`] of them or one longer line. `to` is the end of a line past
/// `from`. A file that is shorter than `to`, or whose lines end elsewhere, was changed behind our back: `InvalidData`.
pub fn whole_lines(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let have = from + bytes.len() as u64;
        let next = to.min(have + PIECE_BYTES);
        if have == next || bytes.len() as u64 > LINE_BYTES {
            return Err(changed("has no line end where one was seen"));
        }
        bytes.resize((next - from) as usize, 0);
        let fresh = (have - from) as usize;
        file.read_exact_at(&mut bytes[fresh..], have).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => changed("was cut short"),
            _ => e,
        })?;
        if let Some(newline) = memchr::memrchr(b'\n', &bytes[fresh..]) {
            bytes.truncate(fresh + newline + 1);
            return Ok(bytes);
        }
    }
}

/// Whether a line begins at `offset`.
pub fn begins_line(file: &File, offset: u64) -> io::Result<bool> {
    let Some(before) = offset.checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    match file.read_exact_at(&mut byte, before) {
        Ok(()) => Ok(byte == *b"\n"),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn changed(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the session's output file {how}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("written");
        file
    }

    #[test]
    fn pieces_are_whole_lines() {
        let long = "x".repeat(3 * PIECE_BYTES as usize);
        let text = format!("a\nbb\n{long}\nc\n{}", "short line\n".repeat(50_000));
        let file = file(text.as_bytes());
        let (mut at, mut got) = (0, Vec::new());
        while at < text.len() as u64 {
            let piece = whole_lines(&file, at, text.len() as u64).expect("lines");
            assert_eq!(piece.last(), Some(&b'\n'));
            assert!(piece.len() as u64 <= PIECE_BYTES || piece.len() > long.len());
            assert!(begins_line(&file, at).expect("readable"));
            at += piece.len() as u64;
            got.extend(piece);
        }
        assert_eq!(got, text.as_bytes());
        assert!(!begins_line(&file, 1).expect("readable"));
        assert!(!begins_line(&file, 1 << 40).expect("readable"));
    }

    #[test]
    fn a_file_changed_behind_our_back_is_said() {
        let kind = |bytes, from, to| whole_lines(&file(bytes), from, to).map_err(|e| e.kind());
        assert_eq!(kind(b"a\n", 0, 5), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(b"abcdef", 0, 6), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(b"a\nbc", 0, 4), Ok(b"a\n".to_vec()));
        let endless = vec![0; LINE_BYTES as usize + 2 * PIECE_BYTES as usize];
        assert_eq!(kind(&endless, 0, endless.len() as u64), Err(io::ErrorKind::InvalidData));
    }
}

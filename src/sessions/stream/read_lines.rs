//! Reads whole lines from the middle of a file, for replay.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::tail::{LINE_BYTES, WHOLE_BYTES};

/// Bytes of one read: large enough to amortise the system call; small enough that a reader holds a
/// thread for about a millisecond, and that little is buffered for a client that does not read.
pub const PIECE_BYTES: u64 = 64 * 1024;

/// Content at a position of the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Whole lines: at most [`PIECE_BYTES`], or one longer line.
    Lines(Vec<u8>),
    /// The beginning of a line that is longer than [`WHOLE_BYTES`]; its end is not known yet.
    Long,
}

/// The lines from `from` on. `to` is the end of a line after `from`. `InvalidData` when the file is
/// shorter than `to` or its lines end elsewhere: it was changed.
pub fn whole_lines(file: &File, from: u64, to: u64) -> io::Result<Piece> {
    let mut bytes = Vec::new();
    loop {
        let have = from + bytes.len() as u64;
        if have == to {
            return Err(changed("has no line end where one was seen"));
        }
        let fresh = bytes.len();
        read_more(file, have, to, &mut bytes)?;
        // Exact, regardless of the pieces: all readers must derive the same frames, and so the same
        // ids.
        let first = memchr::memchr(b'\n', &bytes[fresh..]).map_or(bytes.len(), |newline| fresh + newline);
        if first as u64 > WHOLE_BYTES {
            return Ok(Piece::Long);
        }
        if let Some(newline) = memchr::memrchr(b'\n', &bytes[fresh..]) {
            bytes.truncate(fresh + newline + 1);
            return Ok(Piece::Lines(bytes));
        }
    }
}

/// A piece of the long line that begins at `start`: its bytes at `from`, without the newline, and
/// whether the newline was reached.
pub fn of_long_line(file: &File, start: u64, from: u64, to: u64) -> io::Result<(Vec<u8>, bool)> {
    if from >= to || from - start > LINE_BYTES {
        return Err(changed("has no line end where one was seen"));
    }
    let mut bytes = Vec::new();
    read_more(file, from, to, &mut bytes)?;
    let newline = memchr::memchr(b'\n', &bytes);
    if let Some(newline) = newline {
        bytes.truncate(newline);
    }
    Ok((bytes, newline.is_some()))
}

fn read_more(file: &File, from: u64, to: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    let have = bytes.len();
    bytes.resize(have + to.saturating_sub(from).min(PIECE_BYTES) as usize, 0);
    file.read_exact_at(&mut bytes[have..], from).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => changed("was truncated"),
        _ => e,
    })
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
            let Piece::Lines(piece) = whole_lines(&file, at, text.len() as u64).expect("lines") else { panic!() };
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
        let kind = |bytes: &[u8], from, to| whole_lines(&file(bytes), from, to).map_err(|e| e.kind());
        assert_eq!(kind(b"a\n", 0, 5), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(b"abcdef", 0, 6), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(b"a\nbc", 0, 4), Ok(Piece::Lines(b"a\n".to_vec())));
        let endless = vec![b'x'; LINE_BYTES as usize + 2 * PIECE_BYTES as usize];
        assert_eq!(kind(&endless, 0, endless.len() as u64), Ok(Piece::Long));
        let (file, mut at) = (self::file(&endless), 0);
        let error = loop {
            match of_long_line(&file, 0, at, endless.len() as u64) {
                Ok((bytes, ended)) => {
                    assert!(!ended);
                    at += bytes.len() as u64;
                }
                Err(e) => break e.kind(),
            }
        };
        assert_eq!(error, io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_long_line_is_read_up_to_its_end() {
        // One byte too long, and longer than another piece.
        for length in [WHOLE_BYTES + 1, WHOLE_BYTES + 1000, WHOLE_BYTES + 2 * PIECE_BYTES] {
            let mut text = vec![b'x'; length as usize];
            text.extend_from_slice(b"\nnext\n");
            let (file, to) = (file(&text), text.len() as u64);
            assert_eq!(whole_lines(&file, 0, to).expect("read"), Piece::Long, "{length}");
            let mut at = 0;
            loop {
                let (bytes, ended) = of_long_line(&file, 0, at, to).expect("read");
                at += bytes.len() as u64;
                if ended {
                    break;
                }
            }
            assert_eq!(at, length);
            assert_eq!(whole_lines(&file, at + 1, to).expect("read"), Piece::Lines(b"next\n".to_vec()));
        }
    }

    #[test]
    fn a_line_of_the_bound_is_whole_wherever_it_begins() {
        for before in [0, 1, 1000, PIECE_BYTES as usize - 1] {
            let mut text = vec![b'a'; before];
            text.push(b'\n');
            text.resize(text.len() + WHOLE_BYTES as usize, b'x');
            text.push(b'\n');
            let (file, to, from) = (file(&text), text.len() as u64, before as u64 + 1);
            let Piece::Lines(line) = whole_lines(&file, from, to).expect("read") else { panic!("{before}") };
            assert_eq!(line.len() as u64, WHOLE_BYTES + 1);
        }
    }
}

//! Parser for server-sent events. Pure: bytes in, frames out.

/// Maximum bytes of a line; a longer one is an error (the daemon's limit is 32 MiB).
pub const MAX_LINE: usize = 64 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub id: Option<String>,
    /// `message` when the frame has no `event:`.
    pub event: String,
    /// The `data:` lines, joined by newlines.
    pub data: String,
}

#[derive(Debug, Default)]
pub struct Parser {
    rest: Vec<u8>,
    scanned: usize,
    frame: Frame,
    has_data: bool,
}

impl Parser {
    /// Takes bytes and returns the completed frames. Ignores comments, `retry:` and frames without
    /// data.
    ///
    /// # Errors
    /// A line is longer than [`MAX_LINE`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, String> {
        self.rest.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut start = 0;
        while let Some(at) = memchr::memchr(b'\n', &self.rest[self.scanned.max(start)..]) {
            let end = self.scanned.max(start) + at;
            let line = String::from_utf8_lossy(&self.rest[start..end]).into_owned();
            start = end + 1;
            self.scanned = start;
            frames.extend(self.line(line.strip_suffix('\r').unwrap_or(&line)));
        }
        self.rest.drain(..start);
        self.scanned = self.rest.len();
        if self.rest.len() > MAX_LINE {
            return Err(format!("a line of the stream is longer than {MAX_LINE} bytes"));
        }
        Ok(frames)
    }

    fn line(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            let mut frame = std::mem::take(&mut self.frame);
            let complete = std::mem::take(&mut self.has_data);
            if frame.event.is_empty() {
                frame.event = "message".to_owned();
            }
            return complete.then_some(frame);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.frame.id = Some(value.to_owned()),
            "event" => self.frame.event = value.to_owned(),
            "data" => {
                if self.has_data {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "retry: 1000\n\n: ping\n\nid: 1:0:0\nevent: session_start\ndata: {\"a\":\"ü\"}\n\nevent: x\r\ndata: 1\r\ndata:2\r\n\r\ndata: {}\n\n";

    fn frame(id: Option<&str>, event: &str, data: &str) -> Frame {
        Frame { id: id.map(str::to_owned), event: event.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn any_cut_of_the_bytes_gives_the_same_frames() {
        let expected = vec![
            frame(Some("1:0:0"), "session_start", "{\"a\":\"ü\"}"),
            frame(None, "x", "1\n2"),
            frame(None, "message", "{}"),
        ];
        for size in 1..STREAM.len() {
            let mut parser = Parser::default();
            let frames: Vec<Frame> =
                STREAM.as_bytes().chunks(size).flat_map(|piece| parser.push(piece).unwrap_or_default()).collect();
            assert_eq!(frames, expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_unfinished_frame_is_not_a_frame() {
        assert_eq!(Parser::default().push(b"event: done\ndata: {}\n"), Ok(vec![]));
    }
}

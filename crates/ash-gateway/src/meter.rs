//! Counts the tokens in an answer of the Messages API. Reads the bytes and never changes them.
//!
//! A stream reports its usage in `message_start` (input and cache) and, as running totals, in each
//! `message_delta` (output); a whole message has it in `usage`. The meter counts the increase of
//! each total, so an interrupted answer is counted up to the interruption.

use ash_protocol::gateway::Tokens;
use serde::Deserialize;

/// Maximum bytes of an SSE line; a longer one is not counted (lines with usage have a few hundred).
const MAX_LINE: usize = 1 << 20;
/// Maximum bytes of a whole message; a longer one is not counted. 128,000 output tokens have about
/// 600 KB.
const MAX_MESSAGE: usize = 2 << 20;

/// Maximum tokens of one answer. Sums stay within SQLite's integers, whatever an upstream reports.
const MAX_TOKENS: u64 = 1 << 40;

#[derive(Deserialize, Default)]
struct Usage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
}

/// A line of a stream or a whole message: both have `usage` at the top or in `message`.
#[derive(Deserialize)]
struct Carrier {
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    message: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Debug)]
enum Form {
    Stream { line: Vec<u8>, too_long: bool },
    Message { body: Vec<u8>, too_long: bool },
    Uncounted,
}

#[derive(Debug)]
pub struct Meter {
    form: Form,
    seen: Tokens,
}

impl Meter {
    /// A meter for an answer with this status and content type. Errors and other types cost no
    /// tokens.
    pub fn new(status: u16, content_type: &str) -> Self {
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        let form = match kind {
            _ if status != 200 => Form::Uncounted,
            "text/event-stream" => Form::Stream { line: Vec::new(), too_long: false },
            "application/json" => Form::Message { body: Vec::new(), too_long: false },
            _ => Form::Uncounted,
        };
        Self { form, seen: Tokens::default() }
    }

    /// A meter that counts nothing.
    pub fn off() -> Self {
        Self { form: Form::Uncounted, seen: Tokens::default() }
    }

    /// Whether the answer is counted.
    pub fn counts(&self) -> bool {
        !matches!(self.form, Form::Uncounted)
    }

    /// Whether the answer is a stream, which reports usage at its beginning.
    pub fn streams(&self) -> bool {
        matches!(self.form, Form::Stream { .. })
    }

    /// Reads the next bytes and returns their new tokens.
    pub fn feed(&mut self, bytes: &[u8]) -> Tokens {
        let before = self.seen;
        match &mut self.form {
            Form::Uncounted => {}
            Form::Message { body, too_long } => {
                *too_long |= body.len() + bytes.len() > MAX_MESSAGE;
                if *too_long {
                    *body = Vec::new();
                } else {
                    body.extend_from_slice(bytes);
                }
            }
            Form::Stream { line, too_long } => {
                let mut rest = bytes;
                while let Some(end) = memchr::memchr(b'\n', rest) {
                    if !*too_long && line.len() + end <= MAX_LINE {
                        if line.is_empty() {
                            read(data(&rest[..end]), &mut self.seen);
                        } else {
                            line.extend_from_slice(&rest[..end]);
                            read(data(line), &mut self.seen);
                        }
                    }
                    *too_long = false;
                    line.clear();
                    rest = &rest[end + 1..];
                }
                if !*too_long {
                    line.extend_from_slice(rest);
                    *too_long = line.len() > MAX_LINE;
                }
                if *too_long {
                    *line = Vec::new();
                }
            }
        }
        grown(before, self.seen)
    }

    /// Ends the answer and returns the tokens of a whole message.
    pub fn finish(&mut self) -> Tokens {
        let before = self.seen;
        if let Form::Message { body, too_long: false } = &self.form {
            read(Some(body), &mut self.seen);
        }
        self.form = Form::Uncounted;
        grown(before, self.seen)
    }
}

/// What follows `data:` in an SSE line.
fn data(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(b"data:")
}

fn read(json: Option<&[u8]>, seen: &mut Tokens) {
    let Some(json) = json.filter(|json| memchr::memmem::find(json, b"\"usage\"").is_some()) else { return };
    // A delta may quote the word; what does not parse has no usage.
    let Ok(carrier) = serde_json::from_slice::<Carrier>(json) else { return };
    let Some(usage) = carrier.usage.or(carrier.message.and_then(|message| message.usage)) else { return };
    let take = |total: &mut u64, given: Option<u64>| *total = (*total).max(given.unwrap_or(0).min(MAX_TOKENS));
    take(&mut seen.input, usage.input_tokens);
    take(&mut seen.output, usage.output_tokens);
    take(&mut seen.cache_creation, usage.cache_creation_input_tokens);
    take(&mut seen.cache_read, usage.cache_read_input_tokens);
}

fn grown(before: Tokens, after: Tokens) -> Tokens {
    Tokens {
        input: after.input - before.input,
        output: after.output - before.output,
        cache_creation: after.cache_creation - before.cache_creation,
        cache_read: after.cache_read - before.cache_read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "event: message_start\n",
        r#"data: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":25,"cache_creation_input_tokens":7,"cache_read_input_tokens":9,"output_tokens":1}}}"#,
        "\n\nevent: content_block_delta\r\n",
        r#"data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"the \"usage\" of it"}}"#,
        "\r\n\r\nevent: message_delta\n",
        r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15,"input_tokens":null}}"#,
        "\n\n",
    );

    fn count(status: u16, kind: &str, chunks: impl Iterator<Item = Vec<u8>>) -> Tokens {
        let mut meter = Meter::new(status, kind);
        let mut sum = Tokens::default();
        let mut add = |more: Tokens| {
            sum.input += more.input;
            sum.output += more.output;
            sum.cache_creation += more.cache_creation;
            sum.cache_read += more.cache_read;
        };
        chunks.for_each(|chunk| add(meter.feed(&chunk)));
        add(meter.finish());
        sum
    }

    #[test]
    fn a_stream_is_counted_however_it_is_cut_into_chunks() {
        let expected = Tokens { input: 25, output: 15, cache_creation: 7, cache_read: 9 };
        for size in [1, 2, 3, 7, 64, 100, STREAM.len()] {
            let chunks = STREAM.as_bytes().chunks(size).map(<[u8]>::to_vec);
            assert_eq!(count(200, "text/event-stream; charset=utf-8", chunks), expected, "chunks of {size}");
        }
    }

    #[test]
    fn a_cut_stream_is_counted_as_far_as_it_came() {
        let half = STREAM.find("content_block_delta").unwrap();
        let got = count(200, "text/event-stream", std::iter::once(STREAM.as_bytes()[..half].to_vec()));
        assert_eq!(got, Tokens { input: 25, output: 1, cache_creation: 7, cache_read: 9 });
    }

    #[test]
    fn a_whole_message_is_counted() {
        let body = br#"{"type":"message","content":[{"text":"x"}],"usage":{"input_tokens":3,"output_tokens":4}}"#;
        let chunks = || body.chunks(10).map(<[u8]>::to_vec);
        assert_eq!(count(200, "application/json", chunks()), Tokens { input: 3, output: 4, ..Tokens::default() });
        assert_eq!(count(529, "application/json", chunks()), Tokens::default());
        assert_eq!(count(200, "text/plain", chunks()), Tokens::default());
    }

    #[test]
    fn endless_lines_and_bodies_are_not_kept() {
        let chunk = vec![b'x'; 1 << 20];
        for kind in ["text/event-stream", "application/json"] {
            let mut meter = Meter::new(200, kind);
            for _ in 0..20 {
                meter.feed(&chunk);
            }
            let kept = match &meter.form {
                Form::Stream { line, .. } => line.capacity(),
                Form::Message { body, .. } => body.capacity(),
                Form::Uncounted => 0,
            };
            assert!(kept <= MAX_MESSAGE, "{kept} bytes kept");
        }
        let mut meter = Meter::new(200, "text/event-stream");
        meter.feed(&vec![b'x'; MAX_LINE + 1]);
        assert_eq!(
            meter.feed(format!("\n{STREAM}").as_bytes()).output,
            15,
            "counting continues after an overlong line"
        );
    }
}

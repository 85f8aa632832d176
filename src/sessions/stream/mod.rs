//! From claude's stdout file to the frames that clients receive: tail, replay, long lines, event
//! ids.

pub mod abridge;
pub mod event_id;
pub mod frames;
pub mod inotify;
pub mod published;
pub mod read_lines;
pub mod reader;
pub mod resume_point;
pub mod tail;
pub mod trim;

pub use event_id::EventId;

/// A stream of complete SSE frames; the HTTP layer sends the bytes unchanged.
pub type FrameStream =
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<bytes::Bytes, std::convert::Infallible>> + Send>>;

//! Sends a line that is too long to hold: the first read classifies it, the second sends it in
//! pieces.

use std::io;

use bytes::BytesMut;

use super::{Place, Reader, Step, Turns};
use crate::sessions::claude::omitted::LONG_LINE;
use crate::sessions::stream::abridge::{Abridger, Bounds};
use crate::sessions::stream::frames::{END, long_frames, piece_of};
use crate::sessions::stream::read_lines::{PIECE_BYTES, of_long_line};

/// The head of its `message` frame is sent.
#[derive(Clone, Copy, Debug)]
pub struct LongLine {
    place: Place,
    /// The next byte to send.
    at: u64,
    /// Offset of its newline.
    end: u64,
}

impl<T: Turns> Reader<T> {
    /// The frames before the line's own, and the head of that. `to` is the end of a later line.
    pub(super) async fn begin_long(&mut self, place: Place, to: u64, out: &mut BytesMut) -> io::Result<()> {
        let mut abridger = Abridger::new(Bounds::FRAMES);
        let mut end = place.offset;
        loop {
            let (bytes, ended) = of_long_line(self.file()?, place.offset, end, to)?;
            abridger.feed(&bytes);
            end += bytes.len() as u64;
            if ended {
                break;
            }
            tokio::task::yield_now().await;
        }
        // The floor is published before bytes are given back, so what was read may be zeros.
        if self.published.borrow().floor > place.offset {
            return Ok(());
        }
        let kept = abridger.finish(place.offset, LONG_LINE).unwrap_or_default();
        self.step =
            if long_frames(&kept, place.number, place.offset, place.skip, self.partial.in_turn(place.number), out) {
                Step::Long(LongLine { place, at: place.offset, end })
            } else {
                Step::Lines(Place { offset: end + 1, skip: 0, ..place })
            };
        Ok(())
    }

    /// The next piece. If it is no longer kept, the stream ends within the frame, which the client
    /// drops. The client reconnects with the previous id and learns of the gap.
    pub(super) fn piece_of_long(&mut self, line: LongLine, out: &mut BytesMut) {
        let piece = self.file().and_then(|file| of_long_line(file, line.place.offset, line.at, line.end));
        let changed = self.published.borrow().floor > line.at;
        let piece = match piece {
            Ok((piece, false)) if !changed => piece,
            _ => return self.step = Step::Finished,
        };
        let last = line.at + piece.len() as u64 == line.end;
        out.reserve(piece.len() + PIECE_BYTES as usize / 64);
        let at = line.at + piece_of(&piece, last, out) as u64;
        self.step = Step::Long(LongLine { at, ..line });
        if at == line.end {
            out.extend_from_slice(END);
            self.step = Step::Lines(Place { offset: line.end + 1, skip: 0, ..line.place });
        }
    }
}

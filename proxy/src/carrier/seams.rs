//! Where the chunks of an answer end.
//!
//! Pingora joins what a backend sends at about the same time into one chunk. HTTP allows that (RFC 9112, 7.1), but to a client
//! that reads a stream chunk by chunk each is a message: SockJS frames, for one. So each piece is noted as it comes from the
//! backend, and the chunk that holds several of them is cut up again on its way out. A chunk that arrives in parts is passed on
//! in parts: nothing waits for the rest.
//!
//! Invariant: what goes out has the same content, whatever is noted. A chunk is cut only if its length is the sum of the pieces.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::vec;

const LINE_END: &[u8] = b"\r\n";

/// The seams of one connection's answers.
#[derive(Debug, Default)]
pub(super) struct Seams {
    /// The lengths of the pieces that have come and not gone out. Noted by whoever sees the answer, who cannot write to it.
    noted: Mutex<Vec<usize>>,
    chunk: Chunk,
}

/// The chunk that is being written.
#[derive(Debug, Default)]
enum Chunk {
    /// Goes out as it is, or there is none.
    #[default]
    Whole,
    Cut {
        /// The pieces that have not begun.
        pieces: vec::IntoIter<usize>,
        /// How much of the present one has not been written; zero: it has not begun.
        left: usize,
    },
    /// All of it is written, but for the line end behind it.
    End,
}

/// What to do with bytes that are to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// They go out as they are.
    Pass,
    /// This many go out, as a piece or a part of one.
    Piece(usize),
    /// This many do not go out.
    Drop(usize),
}

impl Seams {
    /// Notes a piece of an answer in chunks.
    pub(super) fn note(&self, length: usize) {
        // A list of numbers is right whenever its lock is free.
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if length > 0 {
            noted.push(length);
        }
    }

    /// Forgets all: another answer begins.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Says what to do with `data`, and puts in `out` what goes before it.
    pub(super) fn step(&mut self, data: &[u8], out: &mut Vec<u8>) -> Step {
        match &mut self.chunk {
            Chunk::Whole => self.begin(data),
            Chunk::Cut { pieces, left } => {
                if *left == 0 {
                    *left = pieces.next().unwrap_or(data.len());
                    out.extend_from_slice(head(*left).as_bytes());
                }
                Step::Piece(data.len().min(*left))
            }
            Chunk::End => {
                self.chunk = Chunk::Whole;
                match data.starts_with(LINE_END) {
                    true => Step::Drop(LINE_END.len()),
                    false => Step::Pass,
                }
            }
        }
    }

    /// Takes in that `count` bytes of a piece were written, and puts in `out` what goes behind them.
    pub(super) fn written(&mut self, count: usize, out: &mut Vec<u8>) {
        let Chunk::Cut { pieces, left } = &mut self.chunk else {
            return;
        };
        *left = left.saturating_sub(count);
        if *left == 0 {
            out.extend_from_slice(LINE_END);
            if pieces.as_slice().is_empty() {
                self.chunk = Chunk::End;
            }
        }
    }

    /// Looks for the head of a chunk that holds the pieces noted.
    fn begin(&mut self, data: &[u8]) -> Step {
        let noted = self.noted.get_mut().unwrap_or_else(PoisonError::into_inner);
        if noted.is_empty() || data != head(noted.iter().sum()).as_bytes() {
            return Step::Pass;
        }
        let pieces = std::mem::take(noted);
        if pieces.len() == 1 {
            return Step::Pass;
        }
        self.chunk = Chunk::Cut {
            pieces: pieces.into_iter(),
            left: 0,
        };
        Step::Drop(data.len())
    }
}

/// The line before a chunk of this length.
fn head(length: usize) -> String {
    let mut head = String::with_capacity(10);
    // Writing to a string cannot fail.
    let _ = write!(head, "{length:X}\r\n");
    head
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What goes out when `chunk` is written in writes of `most` bytes, each of which takes `taken` at the most.
    fn write(seams: &mut Seams, chunk: &[u8], most: usize, taken: usize) -> Vec<u8> {
        let mut out = Vec::new();
        // Head, content and line end are written one by one.
        let line = head(chunk.len());
        for part in [line.as_bytes(), chunk, LINE_END] {
            let mut rest = part;
            while !rest.is_empty() {
                let most = match part == chunk {
                    true => most.min(rest.len()),
                    false => rest.len(),
                };
                let count = match seams.step(&rest[..most], &mut out) {
                    Step::Pass => most,
                    Step::Drop(count) => {
                        rest = &rest[count..];
                        continue;
                    }
                    Step::Piece(length) => length.min(taken),
                };
                out.extend_from_slice(&rest[..count]);
                seams.written(count, &mut out);
                rest = &rest[count..];
            }
        }
        out
    }

    fn noted(pieces: &[usize]) -> Seams {
        let seams = Seams::default();
        pieces.iter().for_each(|piece| seams.note(*piece));
        seams
    }

    #[test]
    fn a_chunk_of_several_pieces_is_cut_and_one_of_a_single_piece_is_not() {
        let mut seams = noted(&[3, 2]);
        assert_eq!(
            write(&mut seams, b"oneab", 9, 9),
            b"3\r\none\r\n2\r\nab\r\n"
        );
        seams.note(4);
        assert_eq!(write(&mut seams, b"next", 9, 9), b"4\r\nnext\r\n");
        assert_eq!(write(&mut seams, b"unnoted", 9, 9), b"7\r\nunnoted\r\n");
    }

    #[test]
    fn what_does_not_fit_the_notes_goes_out_as_it_is() {
        let mut seams = noted(&[3, 2]);
        assert_eq!(write(&mut seams, b"four", 9, 9), b"4\r\nfour\r\n");
        seams.reset();
        assert_eq!(write(&mut seams, b"oneab", 9, 9), b"5\r\noneab\r\n");
    }

    proptest! {
        #[test]
        fn content_stays_and_chunks_are_the_pieces(
            pieces in prop::collection::vec(1_usize..40, 1..6), most in 1_usize..50, taken in 1_usize..50,
        ) {
            let content: Vec<u8> = (0..pieces.iter().sum()).map(|at: usize| at as u8).collect();
            let mut expected = Vec::new();
            let mut rest = &content[..];
            for piece in &pieces {
                expected.extend_from_slice(head(*piece).as_bytes());
                expected.extend_from_slice(&rest[..*piece]);
                expected.extend_from_slice(LINE_END);
                rest = &rest[*piece..];
            }
            let mut seams = noted(&pieces);
            for _ in 0..2 {
                prop_assert_eq!(write(&mut seams, &content, most, taken), &expected[..]);
                pieces.iter().for_each(|piece| seams.note(*piece));
            }
        }
    }
}

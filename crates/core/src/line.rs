//! Bytes in, lines out.
//!
//! Takes the log's bytes in whatever pieces they were read; gives each complete line without its
//! newline, borrowed from the piece wherever the line lies whole within it. An incomplete line is
//! held until its newline comes; a line longer than [`MAX_LINE`] is skipped, which is said where it
//! would have come, and counted. Only the line feed ends a line: carriage returns, NUL bytes and
//! invalid UTF-8 are bytes like any other. It does not know what a line means, nor where the bytes
//! come from.

use memchr::memchr_iter;

/// The longest line that is taken, bytes without the newline.
///
/// Xray writes lines below 700 bytes, except for a plain HTTP request's URL (without bound) and a
/// `SOCKS4a` host name (8,091 bytes); neither names a user who could be judged by it.
pub const MAX_LINE: usize = 16 * 1024;

/// The next of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line, without its newline.
    Whole(&'a [u8]),
    /// A line that was too long, or what came before the first one that is taken.
    Skipped,
}

impl<'a> Line<'a> {
    /// The line, unless it was skipped.
    #[must_use]
    pub const fn whole(self) -> Option<&'a [u8]> {
        match self {
            Self::Whole(line) => Some(line),
            Self::Skipped => None,
        }
    }
}

/// Cuts a stream of bytes into lines. Holds at most [`MAX_LINE`] bytes, however long a line is.
#[derive(Debug, Default)]
pub struct LineSplitter {
    held: Vec<u8>,
    skipping: bool,
    oversized: u64,
}

impl LineSplitter {
    /// A splitter at the beginning of a line.
    #[must_use]
    pub const fn new() -> Self {
        Self { held: Vec::new(), skipping: false, oversized: 0 }
    }

    /// Takes the next bytes of the stream and gives every line that they complete, in order; of one
    /// that is too long, that it is skipped, as soon as that is known. The same stream gives the
    /// same lines however it is cut into pieces.
    pub fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(Line<'_>)) {
        let mut start = 0;
        for end in memchr_iter(b'\n', bytes) {
            self.complete(bytes.get(start..end).unwrap_or_default(), &mut on_line);
            start = end + 1;
        }
        self.hold(bytes.get(start..).unwrap_or_default(), &mut on_line);
    }

    /// Whether the stream stands in the middle of a line, be it held or skipped.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.skipping || !self.held.is_empty()
    }

    /// Forgets the incomplete line: the next byte begins a new one.
    pub fn discard(&mut self) {
        self.held.clear();
        self.skipping = false;
    }

    /// How many lines were longer than [`MAX_LINE`]. Such a line counts as soon as it is too long,
    /// before its newline has come.
    #[must_use]
    pub fn oversized(&self) -> u64 {
        self.oversized
    }

    fn complete(&mut self, end: &[u8], on_line: &mut impl FnMut(Line<'_>)) {
        if self.skipping {
            self.skipping = false;
        } else if self.held.len() + end.len() > MAX_LINE {
            self.oversized += 1;
            on_line(Line::Skipped);
        } else if self.held.is_empty() {
            on_line(Line::Whole(end));
        } else {
            self.held.extend_from_slice(end);
            on_line(Line::Whole(&self.held));
        }
        self.held.clear();
    }

    fn hold(&mut self, piece: &[u8], on_line: &mut impl FnMut(Line<'_>)) {
        if self.skipping || piece.is_empty() {
            return;
        }
        if self.held.len() + piece.len() > MAX_LINE {
            self.held.clear();
            self.skipping = true;
            self.oversized += 1;
            on_line(Line::Skipped);
            return;
        }
        // All at once, so that a line that trickles in does not grow the buffer step by step.
        self.held.reserve_exact(MAX_LINE - self.held.len());
        self.held.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pieces: &[&[u8]], expected: &[&[u8]], oversized: u64) {
        let mut splitter = LineSplitter::new();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.push(piece, |line| lines.extend(line.whole().map(<[u8]>::to_vec)));
        }
        assert_eq!(lines, expected);
        assert_eq!(splitter.oversized(), oversized);
    }

    #[test]
    fn whole_lines_come_without_their_newline() {
        check(&[b"one\ntwo\n"], &[b"one", b"two"], 0);
    }

    #[test]
    fn a_line_in_pieces_comes_once_its_newline_is_there() {
        check(&[b"on", b"", b"e", b"\ntw", b"o"], &[b"one"], 0);
    }

    #[test]
    fn empty_lines_are_lines() {
        check(&[b"\n", b"\n\nx\n"], &[b"", b"", b"", b"x"], 0);
    }

    #[test]
    fn only_the_line_feed_ends_a_line() {
        let line = b"a\0b\rc\x0bd\xe2\x80\xa8e\xff\x85";
        check(&[&[line.as_slice(), b"\n"].concat()], &[line], 0);
    }

    #[test]
    fn the_longest_line_passes_and_one_byte_more_does_not() {
        let longest = vec![b'x'; MAX_LINE];
        let bytes = [&longest[..], b"\n", &longest[..], b"x\nafter\n"].concat();
        check(&[&bytes], &[&longest, b"after"], 1);
        let (one, two) = bytes.split_at(MAX_LINE);
        check(&[one, two], &[&longest, b"after"], 1);
    }

    #[test]
    fn a_line_without_end_costs_no_more_than_the_longest_line() {
        let mut splitter = LineSplitter::new();
        let piece = vec![b'x'; 64 * 1024 - 1];
        for _ in 0..1024 {
            splitter.push(&piece, |line| assert_eq!(line, Line::Skipped));
        }
        assert!(splitter.is_holding());
        assert!(splitter.held.capacity() <= MAX_LINE);
        let mut lines = Vec::new();
        splitter.push(b"x\nafter\n", |line| lines.extend(line.whole().map(<[u8]>::to_vec)));
        assert_eq!(lines, [b"after"]);
        assert_eq!(splitter.oversized(), 1);
    }

    #[test]
    fn a_line_that_trickles_in_costs_no_more_than_the_longest_line() {
        let mut splitter = LineSplitter::new();
        for _ in 0..MAX_LINE {
            splitter.push(b"x", |_| panic!("no line has ended"));
        }
        assert_eq!(splitter.held.capacity(), MAX_LINE);
        let mut length = 0;
        splitter.push(b"\n", |line| length = line.whole().unwrap().len());
        assert_eq!(length, MAX_LINE);
    }

    #[test]
    fn a_whole_line_is_borrowed_from_the_bytes_given() {
        let bytes = b"held first\nwhole\n";
        let mut splitter = LineSplitter::new();
        splitter.push(bytes, |line| {
            assert!(bytes.as_ptr_range().contains(&line.whole().unwrap().as_ptr()));
        });
        assert_eq!(splitter.held.capacity(), 0);
    }

    #[test]
    fn a_discarded_line_leaves_nothing_behind() {
        let mut splitter = LineSplitter::new();
        splitter.push(b"half", |_| panic!("no line has ended"));
        assert!(splitter.is_holding());
        splitter.discard();
        assert!(!splitter.is_holding());
        splitter.push(&vec![b'x'; MAX_LINE + 1], |line| assert_eq!(line, Line::Skipped));
        splitter.discard();
        let mut lines = Vec::new();
        splitter.push(b"new\n", |line| lines.extend(line.whole().map(<[u8]>::to_vec)));
        assert_eq!(lines, [b"new"]);
        assert!(!splitter.is_holding());
    }

    #[test]
    fn that_a_line_is_skipped_is_said_where_it_would_have_come_and_once() {
        let long = vec![b'x'; 2 * MAX_LINE];
        let bytes = [b"one\n", &long[..], b"\ntwo\n", &long[..], b"\n", &long[..]].concat();
        let expected: [Option<&[u8]>; 5] = [Some(b"one"), None, Some(b"two"), None, None];
        for size in [bytes.len(), MAX_LINE, 1_000, 7] {
            let mut splitter = LineSplitter::new();
            let mut lines = Vec::new();
            for piece in bytes.chunks(size) {
                splitter.push(piece, |line| lines.push(line.whole().map(<[u8]>::to_vec)));
            }
            let lines: Vec<Option<&[u8]>> = lines.iter().map(Option::as_deref).collect();
            assert_eq!(lines, expected, "{size} bytes at a time");
            assert_eq!(splitter.oversized(), 3);
        }
    }

    /// Streams rich in newlines, with lines of every length around the limit.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n')], 0..40),
            1 => (MAX_LINE - 2..MAX_LINE + 3).prop_map(|length| vec![b'x'; length]),
            3 => Just(vec![b'\n']),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_cut_of_the_bytes_gives_the_same_lines(
            bytes in stream(),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let (complete, _) = match bytes.iter().rposition(|&byte| byte == b'\n') {
                Some(last) => bytes.split_at(last + 1),
                None => bytes.split_at(0),
            };
            let all: Vec<&[u8]> = complete.split_inclusive(|&byte| byte == b'\n')
                .map(|line| &line[..line.len() - 1]).collect();
            let expected: Vec<&[u8]> =
                all.iter().copied().filter(|line| line.len() <= MAX_LINE).collect();
            let unfinished = bytes.len() - complete.len();
            let oversized = all.len() - expected.len() + usize::from(unfinished > MAX_LINE);

            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.push(bytes.len());
            ends.sort_unstable();
            let mut splitter = LineSplitter::new();
            let (mut lines, mut skipped) = (Vec::new(), 0);
            let mut start = 0;
            for end in ends {
                splitter.push(&bytes[start..end], |line| match line {
                    Line::Whole(line) => lines.push(line.to_vec()),
                    Line::Skipped => skipped += 1,
                });
                start = end;
            }
            prop_assert_eq!(lines, expected);
            prop_assert_eq!(splitter.oversized(), oversized as u64);
            prop_assert_eq!(skipped, oversized);
            prop_assert_eq!(splitter.is_holding(), unfinished > 0);
        }
    }
}

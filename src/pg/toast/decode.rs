//! pglz and LZ4, decoded as the bytes come in: no more of the output is kept than
//! a match may refer to. Formats: `src/common/pg_lzcompress.c`, and "LZ4 Block
//! Format Description" of the LZ4 project.

/// Decoded bytes are handed over in pieces of about this size.
const PIECE: usize = 128 * 1024;
/// The longest distance of a pglz match (12 bits).
const PGLZ_WINDOW: usize = 4095;
/// The longest distance of an LZ4 match (16 bits).
const LZ4_WINDOW: usize = 65_535;
/// Bytes of a match that are copied before the output is looked at again.
const STEP: usize = 64 * 1024;

/// How a value was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// PostgreSQL's own.
    Pglz,
    /// LZ4 block format.
    Lz4,
    /// One that this version does not know.
    Unknown(u32),
}

impl Method {
    /// `ToastCompressionId` of `src/include/access/toast_compression.h`.
    pub fn of_number(number: u32) -> Self {
        match number {
            0 => Self::Pglz,
            1 => Self::Lz4,
            other => Self::Unknown(other),
        }
    }
}

/// Where in its input the decoder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// pglz: a byte with eight flags comes.
    Control,
    /// pglz: an item comes, a literal or a match, as the lowest flag says.
    Item { flags: u8, left: u8 },
    /// pglz: the second byte of a match comes.
    Distance { flags: u8, left: u8, first: u8 },
    /// pglz: a third byte with more length comes.
    MoreLength { flags: u8, left: u8, distance: usize },
    /// LZ4: a token comes.
    Token,
    /// LZ4: more of the number of literals comes.
    MoreLiterals { token: u8, length: usize },
    /// LZ4: so many literals come.
    Literals { token: u8, left: usize },
    /// LZ4: the low byte of a distance comes.
    DistanceLow { token: u8 },
    /// LZ4: its high byte.
    DistanceHigh { token: u8, low: u8 },
    /// LZ4: more of the length of a match comes.
    MoreMatch { distance: usize, length: usize },
}

/// A decoder of one value.
pub struct Decoder {
    state: State,
    output: Output,
    problem: Option<String>,
}

struct Output {
    bytes: Vec<u8>,
    /// Of `bytes`, so many have been handed over.
    sent: usize,
    window: usize,
    /// Bytes that are still to come in all.
    left: usize,
}

impl Decoder {
    /// A decoder of a value of `size` bytes.
    pub fn new(method: Method, size: usize) -> Self {
        let (state, window, problem) = match method {
            Method::Pglz => (State::Control, PGLZ_WINDOW, None),
            Method::Lz4 => (State::Token, LZ4_WINDOW, None),
            Method::Unknown(number) => {
                (State::Token, 0, Some(format!("compression method {number}")))
            }
        };
        Self { state, output: Output { bytes: Vec::new(), sent: 0, window, left: size }, problem }
    }

    /// Decodes what comes next; false as soon as `take` says stop.
    pub fn feed(&mut self, input: &[u8], take: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let mut rest = input;
        while self.problem.is_none() {
            if let State::Literals { token, left } = self.state {
                let now = left.min(rest.len()).min(STEP);
                let (literals, after) = rest.split_at(now);
                self.output.append(literals, &mut self.problem);
                rest = after;
                if now == left {
                    self.state = State::DistanceLow { token };
                } else {
                    self.state = State::Literals { token, left: left - now };
                    if rest.is_empty() {
                        break;
                    }
                }
            } else {
                let Some((byte, after)) = rest.split_first() else { break };
                rest = after;
                if !self.byte(*byte, take) {
                    return false;
                }
            }
            if !self.output.spill(take) {
                return false;
            }
        }
        true
    }

    /// Hands over what is left.
    ///
    /// # Errors
    /// What is wrong with the input, as the object of "found".
    pub fn finish(mut self, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, String> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if self.output.left > 0 {
            return Err(format!("an end {} bytes too early", self.output.left));
        }
        Ok(self.output.send(take))
    }

    fn byte(&mut self, byte: u8, take: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.state = match self.state {
            State::Control => State::Item { flags: byte, left: 8 },
            State::Item { flags, left } if flags & 1 == 0 => {
                self.output.append(&[byte], &mut self.problem);
                next_item(flags, left)
            }
            State::Item { flags, left } => State::Distance { flags, left, first: byte },
            State::Distance { flags, left, first } => {
                let distance = usize::from(first & 0xf0) << 4 | usize::from(byte);
                let length = usize::from(first & 0x0f) + 3;
                if length == 18 {
                    State::MoreLength { flags, left, distance }
                } else {
                    if !self.output.repeat(distance, length, &mut self.problem, take) {
                        return false;
                    }
                    next_item(flags, left)
                }
            }
            State::MoreLength { flags, left, distance } => {
                let length = 18 + usize::from(byte);
                if !self.output.repeat(distance, length, &mut self.problem, take) {
                    return false;
                }
                next_item(flags, left)
            }
            State::Token => literals(byte, usize::from(byte >> 4), byte >> 4 == 15),
            State::MoreLiterals { token, length } => {
                literals(token, length + usize::from(byte), byte == 255)
            }
            State::Literals { .. } => self.state,
            State::DistanceLow { token } => State::DistanceHigh { token, low: byte },
            State::DistanceHigh { token, low } => {
                let distance = usize::from(u16::from_le_bytes([low, byte]));
                let length = usize::from(token & 15) + 4;
                return self.matched(distance, length, token & 15 == 15, take);
            }
            State::MoreMatch { distance, length } => {
                return self.matched(distance, length + usize::from(byte), byte == 255, take);
            }
        };
        true
    }

    fn matched(
        &mut self,
        distance: usize,
        length: usize,
        more: bool,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        if more {
            self.state = State::MoreMatch { distance, length };
            return true;
        }
        self.state = State::Token;
        self.output.repeat(distance, length, &mut self.problem, take)
    }
}

fn next_item(flags: u8, left: u8) -> State {
    match left {
        1 => State::Control,
        _ => State::Item { flags: flags >> 1, left: left - 1 },
    }
}

fn literals(token: u8, length: usize, more: bool) -> State {
    match more {
        true => State::MoreLiterals { token, length },
        false => State::Literals { token, left: length },
    }
}

impl Output {
    fn append(&mut self, bytes: &[u8], problem: &mut Option<String>) {
        if bytes.len() > self.left {
            *problem = Some("more bytes than the value has".to_owned());
            return;
        }
        self.left -= bytes.len();
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends `length` bytes that were output `distance` bytes ago; the two may
    /// overlap.
    fn repeat(
        &mut self,
        distance: usize,
        length: usize,
        problem: &mut Option<String>,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        if distance == 0 || distance > self.bytes.len() {
            *problem = Some(format!("a match {distance} bytes back"));
            return true;
        }
        if length > self.left {
            *problem = Some("more bytes than the value has".to_owned());
            return true;
        }
        self.left -= length;
        let mut missing = length;
        while missing > 0 {
            let from = self.bytes.len() - distance;
            let now = missing.min(distance).min(STEP);
            self.bytes.extend_from_within(from..from + now);
            missing -= now;
            if !self.spill(take) {
                return false;
            }
        }
        true
    }

    /// Hands over what is complete once there is enough of it.
    fn spill(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if self.bytes.len() - self.sent < PIECE {
            return true;
        }
        let taken = self.send(take);
        let kept = self.bytes.len().min(self.window);
        let from = self.bytes.len() - kept;
        self.bytes.copy_within(from.., 0);
        self.bytes.truncate(kept);
        self.sent = kept;
        taken
    }

    fn send(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let taken = self.sent == self.bytes.len() || take(&self.bytes[self.sent..]);
        self.sent = self.bytes.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Decodes in pieces of every size: state is kept over any border.
    fn decode(method: Method, input: &[u8], size: usize) -> Result<Vec<u8>, String> {
        let mut seen: Option<Result<Vec<u8>, String>> = None;
        for piece in [1, 2, 3, 7, 1000, input.len().max(1)] {
            let mut out = Vec::new();
            let mut take = |bytes: &[u8]| {
                out.extend_from_slice(bytes);
                true
            };
            let mut decoder = Decoder::new(method, size);
            for part in input.chunks(piece) {
                assert!(decoder.feed(part, &mut take));
            }
            let ended = decoder.finish(&mut take);
            let outcome = ended.map(|_| out);
            if let Some(seen) = &seen {
                assert_eq!(*seen, outcome, "in pieces of {piece}");
            }
            seen = Some(outcome);
        }
        seen.unwrap()
    }

    #[test]
    fn pglz_literals_matches_and_long_matches() {
        // "abc", 3 bytes from 3 back, then 18 + 2 bytes from 1 back.
        let input = [0b0001_1000, b'a', b'b', b'c', 0x00, 0x03, 0x0f, 0x01, 0x02];
        let expected = [b"abcabc".as_slice(), &[b'c'; 20]].concat();
        assert_eq!(decode(Method::Pglz, &input, 26).unwrap(), expected);
    }

    #[test]
    fn lz4_literals_matches_and_long_ones() {
        // 2 literals, 15 + 255 + 5 + 4 bytes from 2 back, then 17 literals.
        let mut input = vec![0x2f, b'x', b'y', 2, 0, 255, 5, 0xf0, 2];
        input.extend_from_slice(&[b'z'; 17]);
        let expected: Vec<u8> =
            b"xy".iter().copied().cycle().take(2 + 279).chain([b'z'; 17]).collect();
        assert_eq!(decode(Method::Lz4, &input, expected.len()).unwrap(), expected);
    }

    #[test]
    fn output_far_beyond_the_window_is_whole() {
        // One literal and its repetition, three million times over.
        let size = 3_000_000;
        let mut input = vec![0x1f, b'q', 1, 0];
        let mut left = size - 1 - 4 - 15;
        while left >= 255 {
            input.push(255);
            left -= 255;
        }
        input.push(left as u8);
        assert_eq!(decode(Method::Lz4, &input, size).unwrap(), vec![b'q'; size]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(decode(Method::Pglz, &[0, b'a'], 9).unwrap_err(), "an end 8 bytes too early");
        assert_eq!(decode(Method::Pglz, &[1, 0x00, 0x09], 9).unwrap_err(), "a match 9 bytes back");
        assert_eq!(
            decode(Method::Lz4, &[0x20, b'a', b'b'], 1).unwrap_err(),
            "more bytes than the value has"
        );
        assert_eq!(decode(Method::Unknown(2), &[0], 1).unwrap_err(), "compression method 2");
    }
}

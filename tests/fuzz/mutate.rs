//! Nearly valid inputs: pieces are cut, repeated, exchanged with other samples, or replaced by
//! words that are hard to parse.

/// xorshift64*: small, and reproducible by its seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Less than `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("less than a usize")
    }

    pub fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// Hard in any format: limits of numbers, ends of texts, special characters, invalid UTF-8 and
/// JSON.
const WORDS: &[&[u8]] = &[
    b"-1",
    b"0",
    b"00",
    b"1e400",
    b"-1e400",
    b"1.5",
    b"255",
    b"65536",
    b"2147483648",
    b"4294967296",
    b"9007199254740993",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999999999999999999999999",
    b"null",
    b"true",
    b"\"\"",
    b"[]",
    b"{}",
    b"{\"\":{}}",
    b"[[[[[[[[[[[[[[[[",
    b"}}}}}}}}",
    b"{\"a\":",
    b",",
    b":",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udfff\\ud800",
    b"\\u2028",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\xf0\x9f\x98\x80",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"\0",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\t",
    b"\x1b[2J",
    b"%00",
    b"%2e%2e%2f",
    b"../",
    b"/",
    b"..",
    b"00000000-0000-0000-0000-000000000000",
    b"a=b&c=d",
    b"; q=0.5",
];

const LONGEST: usize = 64 << 10;
const INFLATED: usize = 1 << 20;
/// One input in this many is inflated.
const INFLATE: usize = 128;

/// A new input: one of `samples` (not empty) with a few changes. `words`: words of the format.
pub fn mutated(samples: &[Vec<u8>], words: &[&str], random: &mut Random) -> Vec<u8> {
    let mut bytes = samples[random.below(samples.len())].clone();
    bytes.truncate(LONGEST);
    if random.below(INFLATE) == 0 {
        return inflated(&bytes, random);
    }
    for _ in 0..=random.below(4) {
        change(&mut bytes, samples, words, random);
        bytes.truncate(LONGEST);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, samples: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + random.below(16)).min(bytes.len());
    match random.below(12) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 | 3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        4 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = (random.next() & 0xFF) as u8;
            }
        }
        5 => drop(bytes.splice(at..at, word(words, random).iter().copied())),
        6 => drop(bytes.splice(at..end, word(words, random).iter().copied())),
        7 => token(bytes, at, words, random),
        8 => {
            let piece = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, piece.repeat(1 + random.below(8)));
        }
        9 => {
            let other = &samples[random.below(samples.len())];
            let from = random.below(other.len() + 1);
            let length = random.below(other.len() - from + 1);
            bytes.splice(at..end, other[from..from + length].iter().copied());
        }
        10 => {
            let other = &samples[random.below(samples.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
        _ => {
            let mut number = [0; 8];
            number.copy_from_slice(&random.next().to_le_bytes());
            let length = 1 << random.below(4);
            let end = (at + length).min(bytes.len());
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
    }
}

fn word<'a>(words: &[&'a str], random: &mut Random) -> &'a [u8] {
    if !words.is_empty() && random.below(2) == 0 { random.pick(words).as_bytes() } else { random.pick(WORDS) }
}

/// Replaces the whole token at `at` (a word, a number, a JSON string) by another: the rest stays
/// valid.
fn token(bytes: &mut Vec<u8>, at: usize, words: &[&str], random: &mut Random) {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'"' | b'_' | b'-' | b'.' | b'+');
    let start = bytes[..at].iter().rposition(|byte| !plain(byte)).map_or(0, |before| before + 1);
    let end = bytes[at..].iter().position(|byte| !plain(byte)).map_or(bytes.len(), |after| at + after);
    bytes.splice(start..end, word(words, random).iter().copied());
}

/// Repeats a piece up to [`INFLATED`] bytes, to find quadratic time and recursion.
fn inflated(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let start = random.below(bytes.len());
    let end = start + 1 + random.below((bytes.len() - start).min(32));
    let piece = bytes.get(start..end.min(bytes.len())).unwrap_or_default();
    let piece = if piece.is_empty() { random.pick(WORDS) } else { piece };
    let room = (INFLATED >> random.below(8)).saturating_sub(bytes.len());
    let middle = piece.repeat(room / piece.len());
    [&bytes[..start], &middle, &bytes[start..]].concat()
}

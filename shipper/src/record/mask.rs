//! What of a line must not be shipped: the options `mask` and `mask-regex`.
//!
//! Masks act on whole lines and records of several lines, before anything becomes a field: what they take
//! out is in no record, no dead letter and no message. Filters see the line as it was.
//!
//! | mask          | what it takes out                                                                     |
//! |---------------|---------------------------------------------------------------------------------------|
//! | `cn-mobile`   | a mobile number of mainland China, also with `+86`, blanks or dashes                  |
//! | `cn-id`       | an 18-digit resident identity number with a possible birthday and right check digit   |
//! | `bank-card`   | a card number by its issuer's prefix and length, with a right check digit (Luhn)      |
//! | `bearer`      | the token behind `Bearer`                                                             |
//! | `tencent-key` | an id of an API key of Tencent Cloud; 32 letters and digits behind `secretKey`        |
//! | `email`       | a mail address                                                                        |
//! | `mask-regex`  | what the pattern's groups match, or all that it matches if it has none                |
//!
//! A number is none that is a part of a longer word or number, or stands behind a decimal point. Masks act one
//! after the other, in the order of this table.
//!
//! Bounds: the result has at most [`RECORD_LINE_BYTES_MAX`] bytes, the rest is cut off.

use std::ops::Range;
use std::sync::Arc;

use proto::limits::RECORD_LINE_BYTES_MAX;
use proto::log_opts::{LogOpts, MASKS};

use super::pattern::{self, Groups, Pattern};

/// The masks that have a name, and `mask-regex`.
pub const MASK_COUNT: usize = MASKS.len() + 1;

/// Names of all masks, for messages.
pub fn mask_names() -> impl Iterator<Item = &'static str> {
    MASKS.iter().copied().chain(["mask-regex"])
}

/// Digits of the shortest card number.
const CARD_DIGITS_MIN: usize = 13;

/// Bytes of a masked line whose memory is kept for the next one.
const KEPT_TEXT_BYTES_MAX: usize = 64 << 10;

/// Pattern and check of each named mask, in the order of [`MASKS`]. A group is what is taken out.
const NAMED: [(&str, Check); MASKS.len()] = [
    (
        r"(?:\+?86[- ]?)?1[3-9][0-9][- ]?[0-9]{4}[- ]?[0-9]{4}",
        is_mobile,
    ),
    (r"[1-9][0-9]{16}[0-9Xx]", is_identity),
    (r"[2-6][0-9](?:[ -]?[0-9]){11,17}", card_end),
    (r"(?i)\bbearer[ \t]+([0-9a-z._~+/=-]+)", always),
    (
        r#"\b(AKID[0-9A-Za-z]{13,60})\b|(?i:secret_?key)["']?[ \t]*[:=][ \t]*["']?([0-9A-Za-z]{32})\b"#,
        always,
    ),
    (
        r"[0-9A-Za-z._%+-]+@(?:[0-9A-Za-z-]+\.)+[A-Za-z]{2,}",
        always,
    ),
];

/// Returns where what a pattern has found at a place ends, if it is what the pattern took it for.
type Check = fn(&[u8], &Range<usize>) -> Option<usize>;

/// Takes out of lines what must not be shipped.
#[derive(Debug)]
pub(super) struct Masks {
    masks: Vec<Mask>,
    with: Vec<u8>,
    masked: Vec<u8>,
    next: Vec<u8>,
}

#[derive(Debug)]
struct Mask {
    /// Its place among [`mask_names`].
    index: usize,
    pattern: Arc<Pattern>,
    groups: Groups,
    check: Check,
}

/// A line without what masks took out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masked<'a> {
    pub(super) text: &'a [u8],
    /// Text was left out at the end.
    pub(super) is_cut: bool,
}

impl Masks {
    /// Compiles a container's masks; `None` if it has none.
    pub(super) fn new(opts: &LogOpts, faults: &mut Vec<String>) -> Option<Self> {
        let own = pattern::compile_option("mask-regex", opts.mask_regex.as_deref(), faults);
        let own = own.map(|pattern| (MASKS.len(), pattern, always as Check));
        let named = NAMED.iter().zip(MASKS).enumerate();
        let named = named.filter(|(_, (_, name))| opts.masks.contains(name));
        let named = named.filter_map(|(index, ((text, check), _))| {
            let pattern = pattern::compile_option("mask", Some(text), faults)?;
            Some((index, pattern, *check))
        });
        let masks: Vec<Mask> = named
            .collect::<Vec<_>>()
            .into_iter()
            .chain(own)
            .map(|(index, pattern, check)| Mask {
                index,
                groups: pattern.groups(),
                pattern,
                check,
            })
            .collect();
        (!masks.is_empty()).then(|| Self {
            masks,
            with: opts.mask_with.clone().into_bytes(),
            masked: Vec::new(),
            next: Vec::new(),
        })
    }

    /// Takes out of a text, which is UTF-8, what must not be shipped, and counts it.
    pub(super) fn apply<'a>(
        &'a mut self,
        text: &'a [u8],
        counts: &mut [u64; MASK_COUNT],
    ) -> Masked<'a> {
        let Self {
            masks,
            with,
            masked,
            next,
        } = self;
        let (mut is_masked, mut is_cut) = (false, false);
        for mask in masks {
            let before = if is_masked { masked.as_slice() } else { text };
            next.clear();
            let count = mask.apply(before, with, next);
            if count == 0 {
                continue;
            }
            if let Some(sum) = counts.get_mut(mask.index) {
                *sum += count;
            }
            is_cut |= cut(next);
            std::mem::swap(masked, next);
            is_masked = true;
        }
        if next.capacity() > KEPT_TEXT_BYTES_MAX {
            *next = Vec::new();
        }
        if masked.capacity() > KEPT_TEXT_BYTES_MAX && !is_masked {
            *masked = Vec::new();
        }
        Masked {
            text: if is_masked { masked } else { text },
            is_cut,
        }
    }
}

impl Mask {
    /// Writes a text with what is found replaced, as far as it may become, and returns how often that was. If
    /// it was never, nothing is written.
    fn apply(&mut self, text: &[u8], with: &[u8], out: &mut Vec<u8>) -> u64 {
        let (mut from, mut written, mut count) = (0, 0, 0);
        while from < text.len()
            && let Some(found) = self.pattern.find_groups_from(text, from, &mut self.groups)
        {
            let end = (self.check)(text, &found).filter(|_| !found.is_empty());
            let Some(end) = end else {
                from = next_char(text, found.start);
                continue;
            };
            for span in self.groups.inner_or_whole() {
                if span.is_empty() || span.start < written {
                    continue;
                }
                out.extend_from_slice(text.get(written..span.start).unwrap_or_default());
                out.extend_from_slice(with);
                written = span.end.min(end);
                count += 1;
            }
            from = end;
            if out.len() > RECORD_LINE_BYTES_MAX {
                return count;
            }
        }
        if count > 0 {
            out.extend_from_slice(text.get(written..).unwrap_or_default());
        }
        count
    }
}

/// Cuts a text to what a record may have. Returns whether something was left out.
fn cut(text: &mut Vec<u8>) -> bool {
    if text.len() <= RECORD_LINE_BYTES_MAX {
        return false;
    }
    let is_inside = |byte: Option<&u8>| byte.is_some_and(|byte| byte & 0xc0 == 0x80);
    let mut end = RECORD_LINE_BYTES_MAX;
    while is_inside(text.get(end)) {
        end -= 1;
    }
    text.truncate(end);
    true
}

/// Returns where the character behind the one at a place begins.
fn next_char(text: &[u8], at: usize) -> usize {
    let rest = text.get(at + 1..).unwrap_or_default();
    let inside = rest.iter().take_while(|byte| **byte & 0xc0 == 0x80);
    at + 1 + inside.count()
}

fn always(_: &[u8], found: &Range<usize>) -> Option<usize> {
    Some(found.end)
}

fn is_mobile(text: &[u8], found: &Range<usize>) -> Option<usize> {
    stands_alone(text, found).then_some(found.end)
}

/// Whether a number is no part of a longer word or number.
fn stands_alone(text: &[u8], found: &Range<usize>) -> bool {
    let before = text.get(..found.start).unwrap_or_default();
    let behind = text.get(found.end..).unwrap_or_default();
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let is_fraction = matches!(before, [.., digit, b'.'] if digit.is_ascii_digit());
    !before.last().is_some_and(is_word) && !behind.first().is_some_and(is_word) && !is_fraction
}

/// Whether it is a resident identity number: GB 11643, its check digit by ISO 7064, MOD 11-2.
fn is_identity(text: &[u8], found: &Range<usize>) -> Option<usize> {
    const CHECK_DIGITS: &[u8; 11] = b"10X98765432";
    let (check, digits) = text.get(found.clone())?.split_last()?;
    let value = |range: Range<usize>| {
        let digits = digits.get(range).unwrap_or_default().iter();
        digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'))
    };
    let is_birthday = (1850..2200).contains(&value(6..10))
        && (1..=12).contains(&value(10..12))
        && (1..=31).contains(&value(12..14));
    // Weights are powers of two modulo 11, from the right.
    let sum = digits
        .iter()
        .fold(0, |sum, digit| (sum * 2 + usize::from(digit - b'0')) % 11);
    let expected = CHECK_DIGITS.get(sum * 2 % 11);
    let is_right =
        is_birthday && expected == Some(&check.to_ascii_uppercase()) && stands_alone(text, found);
    is_right.then_some(found.end)
}

/// Looks for the number of a payment card at the beginning of what was found: behind it another number may
/// follow.
fn card_end(text: &[u8], found: &Range<usize>) -> Option<usize> {
    let mut ends = (found.start + CARD_DIGITS_MIN..=found.end).rev();
    ends.find(|end| {
        let number = found.start..*end;
        stands_alone(text, &number) && text.get(number).is_some_and(is_card)
    })
}

/// Whether it is the number of a payment card.
fn is_card(number: &[u8]) -> bool {
    if !number.last().is_some_and(u8::is_ascii_digit) {
        return false;
    }
    let digits: Vec<u32> = number
        .iter()
        .filter(|byte| byte.is_ascii_digit())
        .map(|byte| u32::from(byte - b'0'))
        .collect();
    let prefix = |count: usize| digits.iter().take(count).fold(0, |p, digit| p * 10 + digit);
    let is_issued = match digits.len() {
        13 => prefix(1) == 4,
        15 => matches!(prefix(2), 34 | 37),
        16 => {
            matches!(prefix(1), 4)
                || matches!(prefix(2), 35 | 51..=55 | 62 | 65)
                || matches!(prefix(4), 2221..=2720 | 6011)
        }
        17 | 18 => prefix(2) == 62,
        19 => matches!(prefix(2), 62) || prefix(1) == 4,
        _ => false,
    };
    let luhn = digits.iter().rev().zip([false, true].into_iter().cycle());
    let sum: u32 = luhn
        .map(
            |(digit, is_doubled)| match digit * (1 + u32::from(is_doubled)) {
                large @ 10.. => large - 9,
                small => small,
            },
        )
        .sum();
    is_issued && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{Stream, check};
    use proptest::prelude::*;

    /// Checks what a mask leaves of a text; `#` stands for what it took out.
    fn masks(name: &str, rows: &[(&str, &str)]) {
        for (text, expected) in rows {
            let content = format!("content={expected}");
            check(
                &[("mask", name), ("mask-with", "#")],
                text.as_bytes(),
                &[&content],
            );
        }
    }

    #[test]
    fn mobile_numbers() {
        masks(
            "cn-mobile",
            &[
                ("tel 13812345678.", "tel #."),
                ("13812345678,19912345678", "#,#"),
                ("手机13812345678号", "手机#号"),
                ("+8613812345678 86-138-1234-5678", "# #"),
                ("138 1234 5678", "#"),
                (r#"{"tel":"13812345678"}x"#, r##"{"tel":"#"}x"##),
                // Not of mobile phones, or a part of something longer.
                ("12812345678 1381234567", "12812345678 1381234567"),
                (
                    "1712345678901 id_13812345678",
                    "1712345678901 id_13812345678",
                ),
                (
                    "0.13812345678 13812345678.5 a13812345678",
                    "0.13812345678 #.5 a13812345678",
                ),
            ],
        );
    }

    #[test]
    fn identity_numbers() {
        masks(
            "cn-id",
            &[
                ("id=11010519491231002X!", "id=#!"),
                ("11010519491231002x", "#"),
                ("身份证440524188001010014。", "身份证#。"),
                ("110105194912310021", "110105194912310021"),
                ("11010519491331002X", "11010519491331002X"),
                ("911010519491231002X", "911010519491231002X"),
            ],
        );
    }

    #[test]
    fn card_numbers() {
        masks(
            "bank-card",
            &[
                ("card 4111111111111111 ok", "card # ok"),
                ("5555-5555-5555-4444", "#"),
                ("3782 822463 10005", "#"),
                ("6222021234567890128", "#"),
                ("4111111111111111 13812345678", "# 13812345678"),
                ("4111111111111111 4111111111111111", "# #"),
                // A wrong check digit, no issuer, a part of a longer number.
                ("4111111111111112", "4111111111111112"),
                ("1000000000000008", "1000000000000008"),
                ("41111111111111110000000", "41111111111111110000000"),
            ],
        );
    }

    #[test]
    fn tokens_keys_and_addresses() {
        masks(
            "bearer",
            &[
                (
                    "Authorization: Bearer abc.DEF-_~+/= x",
                    "Authorization: Bearer # x",
                ),
                ("bearer  t", "bearer  #"),
                ("forbearer x, Bearer", "forbearer x, Bearer"),
            ],
        );
        let key = "0123456789abcdef0123456789ABCDEF";
        masks(
            "tencent-key",
            &[
                ("id AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE.", "id #."),
                (&format!("secretKey={key}"), "secretKey=#"),
                (
                    &format!(r#"{{"SECRET_KEY": "{key}"}}x"#),
                    r##"{"SECRET_KEY": "#"}x"##,
                ),
                (&format!("trace {key} AKID1"), &format!("trace {key} AKID1")),
            ],
        );
        masks(
            "email",
            &[
                ("a.b+c@x-y.example.com, d@e", "#, d@e"),
                ("<a@b.cn>", "<#>"),
                ("a@b.c @x.com", "a@b.c @x.com"),
            ],
        );
    }

    #[test]
    fn a_pattern_of_ones_own() {
        let own = |pattern| [("mask-regex", pattern)];
        check(
            &own("pass[a-z]+"),
            b"a password b passed",
            &["content=a *** b ***"],
        );
        check(
            &own(r"password=(\S+)"),
            b"password=x y",
            &["content=password=*** y"],
        );
        check(
            &own(r"(a)(b)?|c(d)"),
            b"ab a cd",
            &["content=****** *** c***"],
        );
        check(&own("x*"), "中xx".as_bytes(), &["content=中***"]);
        let empty = [("mask-regex", "a"), ("mask-with", "")];
        check(&empty, b"bab", &["content=b***b"]);
    }

    #[test]
    fn masks_act_before_anything_becomes_a_field() {
        let options = [
            ("mask", "email, cn-mobile"),
            ("mask-regex", "tok_[a-z]+"),
            ("filter-regex", "a@b"),
            ("template", r#"{"m":"{log}","n":1}"#),
        ];
        let mut stream = Stream::new(&options);
        stream
            .out(b"a@b.cn 13812345678 tok_x tok_y")
            .out(b"dropped");
        assert_eq!(stream.masked(), [1, 0, 0, 0, 0, 1, 2]);
        assert_eq!(stream.texts(), ["m=*** *** *** *** | n=1"]);
        check(&[("mask", "email")], br#"{"m":"a@b.cn"}"#, &["m=***"]);
    }

    #[test]
    fn what_grows_beyond_the_bound_is_cut() {
        let mut stream = Stream::new(&[("mask-regex", "a"), ("mask-with", "中中")]);
        stream.out(&vec![b'a'; 300_000]);
        let [fields] = &stream.fields()[..] else {
            panic!("one record");
        };
        assert!(fields[0].len() <= "content=".len() + RECORD_LINE_BYTES_MAX);
        assert!(fields[0].len() > RECORD_LINE_BYTES_MAX - 10);
        assert_eq!(fields[1], "__cut__=value");
    }

    proptest! {
        /// Whatever a text: nothing panics, and masks of numbers take out nothing that is no number.
        #[test]
        fn masks_of_numbers_take_out_numbers_only(
            text in "([0-9]{1,20}|[a-z中 .+_-]{0,3}|13812345678|11010519491231002X|4111111111111111){0,8}",
        ) {
            let options = [("mask", "cn-mobile,cn-id,bank-card"), ("mask-with", "#")];
            let mask = |text: &str| {
                let mut stream = Stream::new(&options);
                stream.out(text.as_bytes());
                stream.texts().remove(0).strip_prefix("content=").unwrap().to_owned()
            };
            let masked = mask(&text);
            let kept = |text: &str| text.replace(|c: char| c.is_ascii_digit() || "#X -+".contains(c), "");
            prop_assert_eq!(kept(&masked), kept(&text));
        }
    }
}

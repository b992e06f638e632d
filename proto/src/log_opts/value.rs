//! How values are written: as Go's `strconv.ParseBool` and `time.ParseDuration` and Docker's
//! go-units read them, because that is what users of Docker know.

use std::time::Duration;

/// How many bytes a `k` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Units {
    /// 1024, as go-units `RAMInBytes`.
    Binary,
    /// 1000, as go-units `FromHumanSize`.
    Decimal,
}

/// Parses a boolean as `strconv.ParseBool` does.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Parses a duration as `time.ParseDuration` does: `[+-](number unit)+` or `0`, where the number
/// may have a fraction and the unit is one of ns, us, µs, ms, s, m, h. A negative one is none.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total_nanos = 0_u64;
    while !rest.is_empty() {
        let (whole, fraction, after_number) = split_number(rest)?;
        let unit_chars = after_number
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after_number.len());
        let (unit, after_unit) = after_number.split_at(unit_chars);
        let nanos = unit_nanos(unit)?
            .checked_mul(parse_digits(whole)?)?
            .checked_add(fraction_nanos(fraction, unit_nanos(unit)?))?;
        total_nanos = total_nanos.checked_add(nanos)?;
        rest = after_unit;
    }
    // Go's durations are signed 64-bit nanoseconds.
    i64::try_from(total_nanos).ok()?;
    Some(Duration::from_nanos(total_nanos))
}

/// Splits `12.5s…` into `12`, `5` and `s…`. At least one digit is needed.
fn split_number(text: &str) -> Option<(&str, &str, &str)> {
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    Some((whole, fraction, rest))
}

fn split_digits(text: &str) -> (&str, &str) {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(digits)
}

fn parse_digits(digits: &str) -> Option<u64> {
    if digits.is_empty() {
        return Some(0);
    }
    digits.parse().ok()
}

/// Nanoseconds of `0.fraction` units, rounded down. Digits beyond the 14th change nothing.
fn fraction_nanos(fraction: &str, unit_nanos: u64) -> u64 {
    let mut scale = 1_u128;
    let mut value = 0_u128;
    for digit in fraction.bytes().take(14) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    u64::try_from(value * u128::from(unit_nanos) / scale).unwrap_or(0)
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Parses a size as go-units does: a number, which may have a fraction, at most one space, and a
/// unit of `b`, `k`, `m`, `g`, `t`, `p`, the latter five also as `kb` or `kib`; case is ignored.
pub(super) fn parse_size(text: &str, units: Units) -> Option<u64> {
    let number_chars = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?
        .checked_add(1)?;
    let (number, suffix) = text.split_at(number_chars);
    let number = number.strip_suffix(' ').unwrap_or(number);
    if !number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let bytes = number * f64::from(units.base()).powi(suffix_power(suffix)?);
    to_whole_bytes(bytes)
}

fn suffix_power(suffix: &str) -> Option<i32> {
    let suffix = suffix.to_ascii_lowercase();
    if suffix.is_empty() || suffix == "b" {
        return Some(0);
    }
    let mut chars = suffix.chars();
    let letter = chars.next()?;
    if !matches!(chars.as_str(), "" | "b" | "ib") {
        return None;
    }
    "kmgtp"
        .chars()
        .zip(1..)
        .find_map(|(unit, power)| (unit == letter).then_some(power))
}

/// Returns the whole part, if it is a size that a disk could have.
fn to_whole_bytes(bytes: f64) -> Option<u64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0; // 2^53: above it a float has no units digit
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked against the range just before"
    )]
    (0.0..=EXACT_MAX)
        .contains(&bytes)
        .then_some(bytes.trunc() as u64)
}

impl Units {
    fn base(self) -> u16 {
        match self {
            Units::Binary => 1024,
            Units::Decimal => 1000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn booleans_are_those_of_go() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(parse_bool(text), Some(true), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(parse_bool(text), Some(false), "{text}");
        }
        for text in ["", "yes", "no", "on", "tRUE", " true", "true ", "01"] {
            assert_eq!(parse_bool(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        // From Go's own documentation and time_test.go's cases, by value.
        for (text, nanos) in [
            ("0", 0_u64),
            ("5s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("+0", 0),
            ("1478s", 1_478_000_000_000),
            ("5.0s", 5_000_000_000),
            ("5.6s", 5_600_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.004s", 1_004_000_000),
            ("1.0040s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12µs", 12_000),
            ("12μs", 12_000),
            ("13ms", 13_000_000),
            ("14s", 14_000_000_000),
            ("15m", 900_000_000_000),
            ("16h", 57_600_000_000_000),
            ("3h30m", 12_600_000_000_000),
            ("1m30s", 90_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("9223372036854775807ns", 9_223_372_036_854_775_807),
            ("0.3333333333333333333h", 1_199_999_999_999),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_nanos(nanos)),
                "{text}"
            );
        }
        for text in [
            "",
            "3",
            "-",
            "+",
            "s",
            ".",
            ".s",
            "+.s",
            "-1s",
            "-0.5m",
            "1d",
            "1S",
            "1 s",
            " 1s",
            "1s ",
            "1m 30s",
            "1e3s",
            "++1s",
            "10 parsecs",
            "9223372036854775808ns",
            "99999999999999999999h",
            "3000000h",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_those_of_go_units() {
        for (text, binary, decimal) in [
            ("0", 0_u64, 0_u64),
            ("32", 32, 32),
            ("32b", 32, 32),
            ("32B", 32, 32),
            ("32k", 32_768, 32_000),
            ("32K", 32_768, 32_000),
            ("32kb", 32_768, 32_000),
            ("32KiB", 32_768, 32_000),
            ("32 kib", 32_768, 32_000),
            ("10m", 10_485_760, 10_000_000),
            ("1g", 1_073_741_824, 1_000_000_000),
            ("1.5g", 1_610_612_736, 1_500_000_000),
            (".5k", 512, 500),
            ("2T", 2_199_023_255_552, 2_000_000_000_000),
            ("3p", 3_377_699_720_527_872, 3_000_000_000_000_000),
        ] {
            assert_eq!(parse_size(text, Units::Binary), Some(binary), "{text}");
            assert_eq!(parse_size(text, Units::Decimal), Some(decimal), "{text}");
        }
        for text in [
            "", " ", "m", "hello", "-32", "-32k", "32.3.4", "32  kb", " 32", "32m b", "32bm",
            "32mm", "32kbb", "32e", "inf", "nan", "1e3", "9999p", "banana", "10 mega",
        ] {
            assert_eq!(parse_size(text, Units::Binary), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}|[0-9.]{0,12}[a-zµ ]{0,3}") {
            parse_bool(&text);
            parse_duration(&text);
            parse_size(&text, Units::Binary);
        }

        #[test]
        fn a_duration_written_in_units_is_read_back(
            h in 0_u64..1000, m in 0_u64..1000, s in 0_u64..1000, ms in 0_u64..1000, ns in 0_u64..1000,
        ) {
            let text = format!("{h}h{m}m{s}s{ms}ms{ns}ns");
            let nanos = (h * 3600 + m * 60 + s) * 1_000_000_000 + ms * 1_000_000 + ns;
            prop_assert_eq!(parse_duration(&text), Some(Duration::from_nanos(nanos)));
        }
    }
}

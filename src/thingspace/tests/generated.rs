//! Generated answers, checked against an oracle.
//!
//! Each answer consists of parts whose meaning is known when they are made. The oracle knows only
//! the parts, the readers only the bytes. `GENERATED_ANSWERS` is the number of answers,
//! `GENERATED_SEED` repeats a run. A failure prints the seed and the answer.

mod orders;
mod others;

use std::{env, fs};

use fastrand::Rng;

/// The number in `make test`; `make soak` has ten times as many. A fifth of them are callbacks,
/// which `callbacks::parse` generates.
const ANSWERS: u64 = 200_000;

/// The most memory of the process while all answers are read.
const MAX_RESIDENT_KIB: u64 = 256 << 10;

/// Runs a check for this many fifths of all answers, each with its own random numbers.
fn each_answer(fifths: u64, check: impl Fn(&mut Rng)) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let answers = number("GENERATED_ANSWERS").unwrap_or(ANSWERS) * fifths / 5;
    let seed = number("GENERATED_SEED").unwrap_or_else(|| fastrand::u64(..1 << 53));
    // Shown if the test fails.
    eprintln!("GENERATED_SEED={seed}");
    for answer in 0..answers {
        check(&mut Rng::with_seed(seed.wrapping_add(answer)));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    assert!(peak.is_none_or(|peak| peak < MAX_RESIDENT_KIB), "{peak:?} KiB");
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

/// A request id in one of the forms that services use.
fn id(rng: &mut Rng) -> String {
    let digits = |rng: &mut Rng, radix: u32, count: usize| -> String {
        (0..count).map(|_| char::from_digit(rng.u32(..radix), radix).unwrap()).collect()
    };
    match rng.u8(..4) {
        0 => format!("{}-{}-{}", digits(rng, 16, 8), digits(rng, 16, 4), digits(rng, 16, 12)),
        1 => format!("7{}", digits(rng, 10, 12)),
        2 => format!("r-{}", digits(rng, 10, 4)),
        _ => format!("{}x", digits(rng, 16, 63)),
    }
}

/// A JSON value that has no meaning, sometimes deep or long.
fn noise(rng: &mut Rng) -> String {
    match rng.u32(..2_000) {
        0 => format!("{}{}", "[".repeat(100), "]".repeat(100)),
        1 => format!("\"{}\"", "x".repeat(1 << 19)),
        2 => format!("[{}1]", "1,".repeat(1 << 15)),
        _ => pick(
            rng,
            &[
                "null",
                "1",
                "-1.5e300",
                "\"text\"",
                "\"\\u0000\\ud83d\\ude00\"",
                "[]",
                "{}",
                "[{\"a\":[1]}]",
                "false",
            ],
        )
        .to_owned(),
    }
}

/// An object of these fields in any order, with any white space.
fn object(rng: &mut Rng, mut fields: Vec<(String, String)>) -> String {
    rng.shuffle(&mut fields);
    let space = pick(rng, &["", "", " ", "\r\n\t"]);
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("{space}\"{name}\"{space}:{space}{value}"))
        .collect();
    let mark = pick(rng, &["", "", "", "\u{feff}"]);
    format!("{mark}{{{}{space}}}{space}", fields.join(","))
}

/// The name of a field in any case.
fn any_case(rng: &mut Rng, name: &str) -> String {
    name.chars().map(|c| if rng.u8(..4) == 0 { c.to_ascii_uppercase() } else { c }).collect()
}

/// Damages the bytes in random places.
fn damage(rng: &mut Rng, body: &mut Vec<u8>) {
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..=body.len());
        let end = (at + rng.usize(..8)).min(body.len());
        let insert: Vec<u8> =
            (0..rng.usize(..6)).map(|_| pick(rng, b"\"{}[],:\\ax0\x00\xff")).collect();
        body.splice(at..end, insert);
    }
}

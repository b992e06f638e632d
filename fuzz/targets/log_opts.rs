//! Log options: taken or refused with reasons that name them, and no secret is ever shown.
#![no_main]

use fuzz::{SECRET, format, formatter, options};
use libfuzzer_sys::fuzz_target;
use proto::log_opts::LogOpts;

// Input: one option per line, `name=value`.
fuzz_target!(|input: &str| {
    if input.contains(SECRET) {
        return;
    }
    let given = input.lines().filter_map(|line| line.split_once('='));
    let secrets = [("secret_id", SECRET), ("secret_key", SECRET)];
    let options = options(given.chain(secrets));
    match LogOpts::parse(&options) {
        Ok(opts) => {
            assert!(!format!("{opts:?}").contains(SECRET));
            if let Some(mut formatter) = formatter(&opts) {
                format(&mut formatter, b"a line {\"key\": 1}");
            }
        }
        Err(error) => {
            assert!(!error.faults.is_empty());
            let text = error.to_string();
            assert!(!text.contains(SECRET), "{text}");
        }
    }
});

//! The shipper's configuration: any TOML is taken or refused, and no secret is ever shown.
#![no_main]

use fuzz::SECRET;
use libfuzzer_sys::fuzz_target;
use shipper::config::Config;
use toml::{Table, Value};

fuzz_target!(|text: &str| {
    if text.contains(SECRET) {
        return;
    }
    let Ok(mut table) = text.parse::<Table>() else {
        return;
    };
    if let Some(Value::Table(sources)) = table.get_mut("credentials") {
        for (_, source) in sources.iter_mut() {
            if let Value::Table(source) = source {
                source.insert("secret_id".into(), SECRET.into());
                source.insert("secret_key".into(), SECRET.into());
            }
        }
    }
    match Config::from_table(table, std::iter::empty()) {
        Ok(config) => assert!(!format!("{config:?}").contains(SECRET)),
        Err(faults) => assert!(!faults.to_string().contains(SECRET)),
    }
});

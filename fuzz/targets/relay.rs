//! The relay's messages. The first byte says who is at fault: a host that sends whatever it likes to
//! the shipper, or a shipper that answers a driver whatever it likes. What must hold is in the
//! `rehearsal` of each of the two.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

struct Stage {
    runtime: Runtime,
    driver: driver::call_model::CallModel,
    shipper: shipper::run::rehearsal::Rehearsal,
}

static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (driver, shipper) = runtime.block_on(async {
        let driver = driver::call_model::CallModel::new();
        (driver, shipper::run::rehearsal::Rehearsal::new())
    });
    Stage {
        runtime,
        driver,
        shipper,
    }
});

fuzz_target!(|script: &[u8]| {
    let Some((side, script)) = script.split_first() else {
        return;
    };
    match side % 2 {
        0 => STAGE.runtime.block_on(STAGE.shipper.play(script)),
        _ => STAGE.driver.play(script),
    }
});

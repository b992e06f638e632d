//! SIGKILL of either process under load loses nothing, and repeats no more than was in flight.
//!
//! Method: one container writes 300,000 lines at a steady rate; 20 times, at moments drawn from a
//! seed, the process is killed and started again. Every kill must hit while lines are still on
//! their way. A failed case is repeated with `WORLD_SEED=` and the seed it printed.

use crate::world::{World, Writers};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use world::processes::{Host, UploadSettings};
use world::script::Script;

const LINES: u64 = 300_000;
const LINES_PER_S: u32 = 15_000;
const KILLS: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_driver_loses_nothing() {
    kill_repeatedly("driver", async |host| host.restart_driver().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_shipper_loses_nothing() {
    kill_repeatedly("shipper", async |host| host.restart_shipper().await).await;
}

async fn kill_repeatedly(name: &str, restart: impl AsyncFn(&mut Host) -> anyhow::Result<()>) {
    let upload = UploadSettings {
        batch_logs_max: 1_000,
        ..UploadSettings::default()
    };
    let in_flight_max = KILLS * upload.concurrency_max;
    let moments = moments();
    let mut world = World::start(upload).await;
    let script = Script::new("s1", LINES, 200);
    let pipe = world.container("s1", &[]).await;
    let mut writers = Writers::new();
    writers.start(script.clone(), pipe, Some(LINES_PER_S));
    let began = Instant::now();
    for moment in moments {
        sleep_until(began + moment).await;
        let records = world.standin.stats().records;
        assert!(records < LINES, "all lines had arrived before a kill");
        restart(&mut world.host)
            .await
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
    for pipe in world.finish(writers).await {
        world.stop(pipe).await;
    }
    let report = world.settle(std::slice::from_ref(&script)).await;
    // A batch that is in flight when the shipper dies, or whose answer the driver does not live to
    // record, is sent again.
    let batches = world.uploads();
    let batch_max = batches
        .iter()
        .map(|batch| batch.record_count)
        .max()
        .unwrap_or(0) as u64;
    let duplicated_max = in_flight_max * batch_max;
    eprintln!(
        "{KILLS} kills of the {name}: {report}batches of up to {batch_max} lines were sent, so \
         that up to {duplicated_max} lines may come twice"
    );
    assert!(report.is_at_least_once(), "{}", world.host.output());
    assert!(report.duplicated <= duplicated_max);
    assert_eq!(world.standin.conflicts(), Vec::<String>::new());
}

/// Draws the moments of the kills, over the time in which lines are written.
fn moments() -> Vec<Duration> {
    let seed = world::processes::seed();
    eprintln!("WORLD_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let end_ms = LINES * 1_000 / u64::from(LINES_PER_S) * 19 / 20;
    let mut moments: Vec<_> = (0..KILLS)
        .map(|_| Duration::from_millis(random.u64(200..end_ms)))
        .collect();
    moments.sort_unstable();
    moments
}

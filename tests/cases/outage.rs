//! What is down, is down for itself: containers write and stop as if it were not.

use crate::world::{World, Writers};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use world::processes::UploadSettings;
use world::script::Script;

const OUTAGE: Duration = Duration::from_secs(20);
const LINES_PER_S: u32 = 5_000;

/// The shipper is down while a container writes 5,000 lines/s for 20 s and stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_write_and_stop_while_the_shipper_is_down() {
    let mut world = World::start(UploadSettings::default()).await;
    let line_count = u64::from(LINES_PER_S) * OUTAGE.as_secs();
    let script = Script::new("s1", line_count, 200);
    let pipe = world.container("s1", &[]).await;
    let mut writers = Writers::new();
    world.host.kill_shipper().unwrap();
    let began = Instant::now();
    writers.start(script.clone(), pipe, Some(LINES_PER_S));
    let pipes = world.finish(writers).await;
    let took = began.elapsed();
    for pipe in pipes {
        let waited = pipe.longest_wait();
        // The engine buffers 1 MiB ahead of the FIFO, that is 0.9 s of these lines.
        assert!(
            waited < Duration::from_millis(500),
            "a write waited {waited:?}"
        );
        assert!(
            took < OUTAGE + Duration::from_millis(500),
            "the container took {took:?}"
        );
        let stop_took = world.stop(pipe).await;
        assert!(
            stop_took < Duration::from_secs(1),
            "StopLogging took {stop_took:?}"
        );
    }
    sleep((began + OUTAGE).saturating_duration_since(Instant::now())).await;
    assert_eq!(world.standin.stats().records, 0, "the shipper was down");
    world.host.start_shipper().await.unwrap();
    let report = world.settle(&[script]).await;
    assert!(report.is_exact(), "{report}{}", world.host.output());
}

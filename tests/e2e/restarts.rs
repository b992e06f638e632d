//! Driver and engine end and come back in every way there is, while containers write: what they
//! write before, during and after arrives once. The upgrade of a plugin is in `registry`.

use crate::crashes::kill_plugin;
use crate::scene::{PLUGIN, Scene, full_scene, scene};
use crate::told::{self, Told};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use world::oracle::Report;
use world::processes::wait_until;

/// Lines per second of each container.
const RATE: u64 = 2_000;
/// Time for which the engine is gone.
const GONE: Duration = Duration::from_secs(1);
/// Time within which the engine must have noticed.
const DEADLINE: Duration = Duration::from_secs(60);

/// How an engine ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It is asked to, with SIGTERM.
    Asked,
    /// SIGKILL.
    Killed,
}

/// Ends the engine and starts it again. With `rests`, containers rest at the moment of its end: what
/// an engine has in its own memory then, no driver ever sees.
async fn restart(scene: &mut Scene, end: End, rests: Option<&Told>) {
    if let Some(told) = rests {
        told::rest(&scene.engine, &[told]).await;
    }
    match end {
        End::Asked => scene.engine.stop_dockerd().await.unwrap(),
        End::Killed => scene.engine.kill_dockerd().unwrap(),
    }
    if let Some(told) = rests {
        told::write_on(&scene.engine, &[told]).await;
    }
    sleep(GONE).await;
    scene.engine.start_dockerd(&json!({})).await.unwrap();
}

pub(crate) fn assert_once(report: &Report) {
    eprint!("{report}");
    assert!(report.is_at_least_once(), "{report}");
    assert_eq!(report.duplicated, 0, "{report}");
}

#[test]
fn an_engine_that_leaves_its_containers_running_loses_nothing() {
    scene(&["--live-restore"], async |scene| {
        scene.start_shipper().await;
        scene.install_plugin(&[]).await;
        let told = Told::create(scene.engine.folder(), "told");
        told.run(scene, "box", RATE, &[]).await;
        for end in [End::Asked, End::Killed] {
            scene.wait_for_more_records(1_000).await;
            restart(scene, end, Some(&told)).await;
        }
        scene.wait_for_more_records(1_000).await;
        scene.docker(["stop", "box"]).await;
        assert_eq!(told.tallies().len(), 1, "the box lived on");
        assert_once(&told.settle(scene).await);
    });
}

#[test]
fn an_engine_that_restarts_with_its_containers_loses_nothing() {
    full_scene(async |scene| {
        let told = Told::create(scene.engine.folder(), "told");
        told.run(scene, "box", RATE, &["--restart=always"]).await;
        for (starts, end) in [(2, End::Asked), (3, End::Killed)] {
            scene.wait_for_more_records(1_000).await;
            let rests = match end {
                // Its containers end in good order, before it does.
                End::Asked => None,
                End::Killed => Some(&told),
            };
            restart(scene, end, rests).await;
            told.wait_for_starts("box", starts).await;
        }
        scene.wait_for_more_records(1_000).await;
        scene.docker(["stop", "box"]).await;
        assert_once(&told.settle(scene).await);
    });
}

#[test]
fn a_plugin_that_is_disabled_and_enabled_loses_nothing() {
    full_scene(async |scene| {
        let told = Told::create(scene.engine.folder(), "told");
        told.run(scene, "box", RATE, &[]).await;
        for _ in 0..2 {
            scene.wait_for_more_records(1_000).await;
            scene.docker(["plugin", "disable", "-f", PLUGIN]).await;
            sleep(GONE).await;
            scene.docker(["plugin", "enable", PLUGIN]).await;
        }
        scene.wait_for_more_records(1_000).await;
        scene.docker(["stop", "box"]).await;
        assert_once(&told.settle(scene).await);
    });
}

/// The engine starts a plugin that has died, and tries for the first time after half a second
/// whether it listens. One that dies before that is not started again, for the engine learns of it
/// only after it has tried in vain: for 12.5 s, and then it disables the plugin.
#[test]
fn a_plugin_that_the_engine_has_given_up_goes_on_when_it_is_enabled() {
    full_scene(async |scene| {
        let told = Told::create(scene.engine.folder(), "told");
        told.run(scene, "box", RATE, &[]).await;
        scene.wait_for_more_records(1_000).await;
        kill_plugin(scene).await;
        let began = Instant::now();
        let just_started = scene.engine.processes("/cls-driver")[0];
        kill_process(just_started, Signal::KILL).unwrap();
        // What is left of the process goes last, with its socket.
        let socket = scene.plugin_socket().await;
        let is_given_up = async || {
            let enabled = ["plugin", "inspect", "-f", "{{.Enabled}}", PLUGIN];
            scene.docker(enabled).await == "false" && !socket.exists()
        };
        wait_until("the engine disables the plugin", DEADLINE, is_given_up)
            .await
            .unwrap();
        eprintln!("given up after {:?}", began.elapsed());
        scene.docker(["plugin", "enable", PLUGIN]).await;
        scene.wait_for_more_records(1_000).await;
        scene.docker(["stop", "box"]).await;
        let report = told.settle(scene).await;
        assert!(report.is_at_least_once(), "{report}");
    });
}

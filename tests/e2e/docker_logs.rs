//! `docker logs` works in all its forms: the engine keeps a bounded copy of what a driver gets that
//! can't read logs back.

use crate::scene::{PLUGIN, Scene, full_scene};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use world::chatter::Shape;
use world::processes::wait_until;

const PLAIN: Shape = Shape::Plain { bytes: 64 };
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn docker_logs_works_while_a_container_runs_and_after() {
    full_scene(async |scene| {
        scene
            .run("box", &["-d"], &["--lines", "30", "--rate", "20", "--hold"])
            .await;
        follows_until_the_container_stops(scene).await;
        let expected: Vec<String> = (0..30).map(|number| PLAIN.line(number)).collect();
        assert_eq!(scene.docker(["logs", "box"]).await, expected.join("\n"));
        assert_eq!(
            scene.docker(["logs", "--tail", "3", "box"]).await,
            expected[27..].join("\n")
        );
        assert_eq!(scene.docker(["logs", "--tail", "0", "box"]).await, "");
        since_and_until_are_honoured(scene, &expected).await;
        // Reading is no writing: nothing of it reached CLS again.
        assert_eq!(scene.wait_for_records(30).await.len(), 30);
    });
}

/// Starts following in the middle, stops the container at the end: `docker logs -f` must end too.
async fn follows_until_the_container_stops(scene: &Scene) {
    let mut follow = tokio::process::Command::from(scene.engine.command("docker"));
    follow
        .args(["logs", "-f", "box"])
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut follow = follow.spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    for number in 0..30 {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await;
        let line = line
            .unwrap_or_else(|_| panic!("line {number} does not come"))
            .unwrap();
        assert_eq!(line, Some(PLAIN.line(number)));
    }
    scene.docker(["stop", "box"]).await;
    let ended = tokio::time::timeout(DEADLINE, follow.wait()).await;
    assert!(
        ended
            .expect("docker logs -f ends with the container")
            .unwrap()
            .success()
    );
    assert_eq!(lines.next_line().await.unwrap(), None);
}

async fn since_and_until_are_honoured(scene: &Scene, expected: &[String]) {
    let stamped = scene.docker(["logs", "-t", "box"]).await;
    let tenth = stamped
        .lines()
        .nth(10)
        .and_then(|line| line.split_once(' '));
    let (time, line) = tenth.unwrap();
    assert_eq!(line, expected[10]);
    let since = scene.docker(["logs", "--since", time, "box"]).await;
    assert_eq!(since, expected[10..].join("\n"));
    let until = scene.docker(["logs", "--until", time, "box"]).await;
    assert_eq!(until.lines().last(), Some(expected[10].as_str()));
}

#[test]
fn docker_logs_outlives_the_plugin_process() {
    full_scene(async |scene| {
        scene
            .run("box", &["-d"], &["--lines", "10", "--hold"])
            .await;
        scene.wait_for_records(10).await;
        scene.docker(["plugin", "disable", "-f", PLUGIN]).await;
        assert_eq!(scene.docker(["logs", "box"]).await.lines().count(), 10);
        scene.docker(["plugin", "enable", PLUGIN]).await;
        let gone = async || scene.engine.try_docker(["rm", "-f", "box"]).await.is_ok();
        wait_until("the container can be removed", DEADLINE, gone)
            .await
            .unwrap();
    });
}

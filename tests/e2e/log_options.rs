//! Log options: good ones shape records, bad ones fail `docker run` with a message to act on.

use crate::scene::{PLUGIN, Scene, full_scene};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_shape_records() {
    full_scene(async |scene| {
        let options = [
            "--label=team=blue",
            "--env=STAGE=test",
            "--env=PASSWORD=never-asked-for",
            "--log-opt=labels=team",
            "--log-opt=env=STAGE",
            "--log-opt=tag={{.Name}}/{{.ImageName}}",
            "--log-opt=template={container_name} {team}: {log}",
            "--log-opt=filter-regex=^0000000[0-4]",
            "--log-opt=exclude-regex=^00000003",
            "--log-opt=instance_info={\"zone\":\"a\"}",
            "--log-opt=append_container_details_keys=container_name,container_image_name",
        ];
        scene
            .run("shaped", &options, &["--lines", "10", "--bytes", "8"])
            .await;
        let records = scene.wait_for_records(4).await;
        let contents: Vec<_> = records.iter().map(|record| record.content()).collect();
        let expected = ["0", "1", "2", "4"].map(|digit| format!("shaped blue: 0000000{digit}"));
        assert_eq!(contents, expected);
        for record in &records {
            assert_eq!(record.tag("team"), Some("blue"));
            assert_eq!(record.tag("STAGE"), Some("test"));
            assert_eq!(record.tag("tag"), Some("shaped/chatter"));
            assert_eq!(record.field("__instance__.zone"), Some("a"));
            assert_eq!(
                record.field("__container_details__.container_name"),
                Some("/shaped")
            );
            assert_eq!(
                record.field("__container_details__.container_image_name"),
                Some("chatter")
            );
            assert!(!format!("{record:?}").contains("never-asked-for"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_option_fails_the_start_with_option_value_and_rule() {
    full_scene(async |scene| {
        // Options, and what the message must contain of each.
        let cases: [(&[&str], &[&str]); 7] = [
            (&["topicid=x"], &["topicid", "topic_id"]),
            (&["json=maybe"], &["json", "maybe", "auto", "off"]),
            (&["timeout=fast"], &["timeout", "fast"]),
            (
                &["keep-file=perhaps"],
                &["keep-file", "perhaps", "true", "false"],
            ),
            (&["template={log} {nope}"], &["template", "nope"]),
            (&["filter-regex=(unclosed"], &["filter-regex", "(unclosed"]),
            // All faults at once.
            (
                &["retries=-1", "json=maybe"],
                &["retries", "-1", "json", "maybe"],
            ),
        ];
        for (options, expected) in cases {
            let message = refusal(scene, options).await;
            for part in expected {
                assert!(
                    message.contains(part),
                    "{options:?}: no {part:?} in: {message}"
                );
            }
        }
        // A container that was refused leaves nothing that would be in the way of a good one.
        scene.forget().await;
        scene.run("good", &[], &["--lines", "1"]).await;
        assert_eq!(scene.wait_for_records(1).await.len(), 1);
    })
    .await;
}

/// Returns what `docker run` says when the driver refuses these options.
async fn refusal(scene: &Scene, options: &[&str]) -> String {
    let options: Vec<_> = options
        .iter()
        .map(|option| format!("--log-opt={option}"))
        .collect();
    let mut args = vec!["run", "--network=none", "--log-driver", PLUGIN];
    args.extend(options.iter().map(String::as_str));
    args.push("chatter");
    let output = scene.engine.docker_output(args).await.unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{options:?}: {message}");
    message
}

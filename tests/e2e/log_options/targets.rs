//! Options that say where records go, who signs for them, and what happens if that fails. The
//! shipper has no defaults, so it is the options that do it.

use super::{Case, refusal, run_cases};
use crate::scene::{OTHER_SECRET_ID, OTHER_SECRET_KEY, OTHER_TOPIC_ID, Scene, scene};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use world::processes::{SECRET_ID, TOPIC_ID, wait_until};
use world::standin::fault::{Fault, FaultKind};

pub(super) const CASES: &[Case] = &[
    OWN_KEY, NAMED_KEY, PERSISTENT, GIVING_UP, IMPATIENT, REPEATED,
];

const OWN_KEY: Case = Case {
    name: "own-key",
    log_opts: &[
        "endpoint=@endpoint",
        "topic_id=@topic",
        "secret_id=AKIDEXAMPLE",
        "secret_key=SKEXAMPLE",
    ],
    check: |outcome| {
        let record = &outcome.records[0];
        assert_eq!(record.topic_id, TOPIC_ID);
        assert_eq!(record.secret_id.as_deref(), Some(SECRET_ID));
    },
    ..Case::NONE
};

const NAMED_KEY: Case = Case {
    name: "named-key",
    log_opts: &[
        "endpoint=@endpoint",
        "topic_id=@other-topic",
        "credentials=other",
    ],
    check: |outcome| {
        let record = &outcome.records[0];
        assert_eq!(record.topic_id, OTHER_TOPIC_ID);
        assert_eq!(record.secret_id.as_deref(), Some(OTHER_SECRET_ID));
    },
    ..Case::NONE
};

/// CLS fails as often as makes [`GIVING_UP`] give up.
const PERSISTENT: Case = Case {
    name: "persistent",
    log_opts: &[
        "endpoint=@endpoint",
        "topic_id=@other-topic",
        "credentials=other",
        "retries=0",
    ],
    ..Case::NONE
};

const GIVING_UP: Case = Case {
    name: "giving-up",
    log_opts: &[
        "endpoint=@endpoint",
        "topic_id=@other-topic",
        "credentials=other",
        "retries=2",
    ],
    chatter: &["--say", "out:given up"],
    record_count: 0,
    ..Case::NONE
};

const IMPATIENT: Case = Case {
    name: "impatient",
    log_opts: &[
        "endpoint=@endpoint",
        "topic_id=@other-topic",
        "credentials=other",
        "timeout=300ms",
    ],
    ..Case::NONE
};

const REPEATED: Case = Case {
    name: "repeated",
    log_opts: &[
        "endpoint=@endpoint",
        "topic_id=@other-topic",
        "credentials=other",
        "record-id=true",
    ],
    record_count: 2,
    check: |outcome| {
        let [first, second] = outcome.records.as_slice() else {
            unreachable!("the count was checked");
        };
        let id = first.field("__record_id__");
        assert!(id.is_some(), "{first:?}");
        assert_eq!(second.field("__record_id__"), id);
        assert_eq!(second.content(), first.content());
    },
    ..Case::NONE
};

/// Limit of an upload that no option changes.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn options_say_where_records_go_and_who_signs() {
    scene(&[], async |scene| {
        let dead_letters = scene.engine.folder().join("dead-letters.jsonl");
        let sections = format!(
            "[credentials.other]\nsource = \"inline\"\nsecret_id = \"{OTHER_SECRET_ID}\"\n\
             secret_key = \"{OTHER_SECRET_KEY}\"\nendpoints = [\"127.0.0.1\"]\n\n\
             [own_keys]\nendpoints = [\"127.0.0.1\"]\n\n[dead_letter]\npath = \"{}\"\n",
            dead_letters.display()
        );
        scene.start_shipper_with(&sections).await;
        scene.install_plugin(&[]).await;
        run_cases(scene, &[OWN_KEY, NAMED_KEY]).await;
        what_is_missing_is_named(scene).await;
        retries_bound_the_attempts(scene, &dead_letters).await;
        timeout_bounds_an_attempt(scene).await;
        // The answer to an upload is lost, so it comes again.
        scene.forget().await;
        add_fault(scene, FaultKind::DropAfterStore, Some(1));
        run_cases(scene, &[REPEATED]).await;
    });
}

fn add_fault(scene: &Scene, kind: FaultKind, count: Option<u64>) {
    scene.standin.add_fault(Fault {
        topic_id: Some(OTHER_TOPIC_ID.into()),
        count,
        ..Fault::new(kind)
    });
}

async fn what_is_missing_is_named(scene: &Scene) {
    let message = refusal(scene, &[]).await;
    for option in ["endpoint", "topic_id", "credentials"] {
        let part = format!("log-opt {option}: is missing");
        assert!(message.contains(&part), "no {part}: {message}");
    }
    let options = ["endpoint=h", "topic_id=t", "credentials=nobody"];
    let message = refusal(scene, &options).await;
    assert!(message.contains("credentials=nobody"), "{message}");
    assert!(message.contains("known: other"), "{message}");
    let options = ["endpoint=h", "topic_id=t", "credentials=other"];
    let message = refusal(scene, &options).await;
    let part = "log-opt endpoint=h: credentials \"other\" may not be used at host h";
    assert!(message.contains(part), "{message}");
}

async fn retries_bound_the_attempts(scene: &mut Scene, dead_letters: &Path) {
    scene.forget().await;
    add_fault(scene, FaultKind::Status(500), None);
    GIVING_UP.start(scene).await;
    let is_given_up = async || dead_letters.exists();
    wait_until("the record is given up", DEADLINE, is_given_up)
        .await
        .unwrap();
    let letter: Value = serde_json::from_str(&fs::read_to_string(dead_letters).unwrap()).unwrap();
    assert_eq!(letter["reason"], "retries");
    assert_eq!(letter["topic_id"], OTHER_TOPIC_ID);
    let fields = letter["fields"].as_array().unwrap();
    assert!(fields.contains(&serde_json::json!(["content", "given up"])));
    assert_eq!(scene.standin.stats().faults["Status(500)"], 1 + 2);
    scene.standin.clear_faults();

    scene.forget().await;
    add_fault(scene, FaultKind::Status(502), Some(3));
    run_cases(scene, &[PERSISTENT]).await;
    assert_eq!(scene.standin.stats().faults["Status(502)"], 3);
}

async fn timeout_bounds_an_attempt(scene: &mut Scene) {
    scene.forget().await;
    add_fault(scene, FaultKind::Stall, Some(1));
    let began = Instant::now();
    run_cases(scene, &[IMPATIENT]).await;
    assert!(began.elapsed() < TIMEOUT_DEFAULT, "{:?}", began.elapsed());
    assert_eq!(scene.standin.stats().faults["Stall"], 1);
}

//! The dead-letter commands, beside a running shipper: what `ls`, `show` and `replay` say and do.

use crate::fleet::{Cloud, Writing, driver, shipper};
use std::process::{Command, Output};
use world::nodes::Shipper;
use world::processes::{TOPIC_ID, binary};
use world::standin::fault::{Fault, FaultKind};

/// Runs a command of the shipper's program with the configuration of a running one.
fn command(shipper: &Shipper, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("cls-shipper").unwrap());
    command
        .arg("--config")
        .arg(shipper.dir().join("shipper.toml"))
        .arg("dead-letter")
        .args(arguments);
    command.output().unwrap()
}

/// Returns what a command that succeeds writes.
fn told(shipper: &Shipper, arguments: &[&str]) -> String {
    let output = command(shipper, arguments);
    let all = format!("{arguments:?}: {output:?}");
    assert!(output.status.success(), "{all}");
    assert!(!all.contains("SKEXAMPLE"), "{all}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a shipper has put a record aside.
async fn stored(shipper: &Shipper) {
    let name = "cls_shipper_dead_letters_total";
    let has_one = async || shipper.metric(name).await.unwrap() > 0;
    let in_time = std::time::Duration::from_secs(20);
    let waited = world::processes::wait_until("a dead letter", in_time, has_one).await;
    waited.unwrap();
}

/// A container with a key of its own, good or not, names any topic: no other key is to sign for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_wrote_with_its_own_keys_is_sent_by_a_word_only() {
    let cloud = Cloud::start().await;
    let tenants = "[[tenants]]\nname = \"local\"\nunix_uid = 0\n";
    let shipper = shipper(cloud.shipper("", tenants)).await;
    let endpoint = format!("unix://{}", shipper.socket().display());
    let mut driver = driver("host-1", &endpoint, &[]).await;
    let refusal = Fault::new(FaultKind::Status(413)).times(1);
    cloud.standin.add_fault(refusal);
    let bogus = [
        ("secret_id", "AKIDEXAMPLEBOGUS"),
        ("secret_key", "SKEXAMPLEBOGUS"),
        ("endpoint", &cloud.standin.endpoint()),
        ("topic_id", TOPIC_ID),
    ];
    let mut writing = Writing::new();
    writing.start_with(&mut driver, "s", 1, 1_000, &bogus).await;
    let pipes = writing.finish().await;
    stored(&shipper).await;
    let shown: serde_json::Value = serde_json::from_str(&told(&shipper, &["show", "1"])).unwrap();
    let whose = [&shown["tenant"], &shown["source"], &shown["has_own_keys"]];
    let expected = serde_json::json!(["local", "host-1", true]);
    assert_eq!(serde_json::json!(whose), expected);

    let replayed = command(&shipper, &["replay"]);
    let said = format!("{replayed:?}");
    assert!(said.contains("0 records delivered, 1 kept"), "{said}");
    assert!(
        said.contains("keys of its own: say --credentials"),
        "{said}"
    );
    assert!(cloud.arrivals().is_empty(), "nothing was sent");
    let replayed = told(&shipper, &["replay", "--credentials", "default"]);
    assert_eq!(replayed, "1 records delivered, 0 kept\n");
    drop(pipes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cls_refused_is_listed_shown_and_sent_again() {
    let cloud = Cloud::start().await;
    let mut settings = cloud.shipper("", "");
    settings.sections.push_str(
        "[credentials.bad]\nsource = \"inline\"\nsecret_id = \"AKIDEXAMPLEBAD\"\n\
         secret_key = \"SKEXAMPLEBAD\"\n",
    );
    let good = settings.credentials.clone();
    let elsewhere = format!("[credentials.elsewhere]\n{good}\nendpoints = [\"other.example\"]\n");
    settings.sections.push_str(&elsewhere);
    let shipper = shipper(settings).await;
    assert_eq!(
        told(&shipper, &["ls"]),
        "0 records, 0 lines that are none\n"
    );
    let endpoint = format!("unix://{}", shipper.socket().display());
    let mut driver = driver("host-1", &endpoint, &[]).await;
    // The only line of a batch that is refused for its size can't be cut.
    let refusal = Fault::new(FaultKind::Status(413)).times(1);
    cloud.standin.add_fault(refusal);
    let mut writing = Writing::new();
    writing.start(&mut driver, "s", 1, 1_000).await;
    let pipes = writing.finish().await;
    stored(&shipper).await;

    let listed = told(&shipper, &["ls"]);
    for part in [
        TOPIC_ID,
        "reason=size",
        "413",
        "\n1 records, 0 lines that are none\n",
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let shown: serde_json::Value = serde_json::from_str(&told(&shipper, &["show", "1"])).unwrap();
    assert_eq!(shown["topic_id"], TOPIC_ID);
    assert_eq!(shown["credentials"], "default");
    assert!(!command(&shipper, &["show", "2"]).status.success());

    // Other keys, which CLS does not know: nothing is sent, and nothing is lost.
    let replayed = told(&shipper, &["replay", "--credentials", "bad"]);
    assert_eq!(replayed, "0 records delivered, 1 kept\n");
    // Good keys, which may not be used there.
    let replayed = command(&shipper, &["replay", "--credentials", "elsewhere"]);
    let said = format!("{replayed:?}");
    assert!(said.contains("0 records delivered, 1 kept"), "{said}");
    assert!(said.contains("may not be used at host 127.0.0.1"), "{said}");
    let unknown = command(&shipper, &["replay", "--credentials", "none"]);
    assert!(!unknown.status.success());
    let said = String::from_utf8_lossy(&[unknown.stdout, unknown.stderr].concat()).into_owned();
    assert!(said.contains("`none` are not configured"), "{said}");
    assert_eq!(told(&shipper, &["ls"]), listed, "the letter is still there");

    assert_eq!(told(&shipper, &["replay"]), "1 records delivered, 0 kept\n");
    assert_eq!(
        told(&shipper, &["ls"]),
        "0 records, 0 lines that are none\n"
    );
    let mut report = cloud.settle(&writing.scripts).await;
    // A letter goes alone: under its group's contextFlow, CLS would have two groups that differ.
    assert_eq!(std::mem::take(&mut report.without_context), 1, "{report}");
    assert!(report.is_exact(), "{report}{}", shipper.log());
    drop(pipes);
}

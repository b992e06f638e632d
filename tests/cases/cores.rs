//! Core dumps: neither process leaves one, whatever the limit is that it was started with.
//!
//! Method: the limit is lifted, and each process is sent SIGABRT, whose default is to dump core. The
//! kernel says in the status of a process whether it has dumped, be it into a file or into a program
//! that collects cores. A process that takes no precautions shows that there would have been one.

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use world::nodes::{Driver, Shipper, ShipperSettings};
use world::processes::{Process, SECRET_ID, SECRET_KEY};

fn lift_the_limit() {
    let maximum = getrlimit(Resource::Core).maximum;
    let lifted = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Core, lifted).unwrap();
}

/// Returns whether a process leaves a core when it aborts.
async fn dumps_core(process: &mut Process) -> bool {
    let status = process.end_by(Signal::ABORT).await.unwrap();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    status.core_dumped()
}

#[tokio::test]
async fn a_process_that_aborts_leaves_no_core() {
    lift_the_limit();
    let dir = tempfile::tempdir().unwrap();
    let mut control = Command::new("sh");
    control.args(["-c", "echo started; exec sleep 1000"]);
    control.current_dir(dir.path());
    let mut control = Process::start("control", control, dir.path()).unwrap();
    let log = dir.path().join("control.log");
    let has_started = async || std::fs::read(&log).is_ok_and(|written| !written.is_empty());
    control.wait_ready(has_started).await.unwrap();
    assert!(
        dumps_core(&mut control).await,
        "no process leaves cores here (ulimit -H -c, /proc/sys/kernel/core_pattern): nothing is shown"
    );
    let credentials =
        format!("source = \"inline\"\nsecret_id = \"{SECRET_ID}\"\nsecret_key = \"{SECRET_KEY}\"");
    let settings = ShipperSettings {
        endpoint: "http://127.0.0.1:1".to_owned(),
        listen: String::new(),
        credentials,
        sections: String::new(),
        log_level: "info",
        netns: None,
        files_max: None,
    };
    let mut shipper = Shipper::start(settings).await.unwrap();
    let shipper = shipper.process.as_mut().unwrap();
    assert!(!dumps_core(shipper).await, "the shipper leaves a core");
    for sandbox in ["on", "off"] {
        let mut driver = Driver::start(&[("SANDBOX", sandbox)]).await.unwrap();
        assert!(
            !dumps_core(&mut driver.process).await,
            "the driver leaves a core with SANDBOX={sandbox}"
        );
    }
}

//! The benchmark itself: it runs, counts every line and prints figures that can be read.

use serde_json::Value;
use std::process::Command;
use world::processes::binary;

use crate::world::turn;

#[tokio::test]
async fn the_benchmark_measures_floor_and_product() {
    let _turn = turn().await;
    let program = binary("cls-bench").unwrap();
    let mut command = Command::new(&program);
    command.env("CLS_BIN_DIR", program.parent().unwrap());
    command.args(["--load=1x1000", "--rounds=1", "--seconds=1", "--json"]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let subjects = report["loads"][0]["subjects"].as_array().unwrap();
    let [floor, this] = subjects.as_slice() else {
        panic!("two subjects: {report:#}");
    };
    assert_eq!((&floor[0], &this[0]), (&"floor".into(), &"this".into()));
    let floor_us = floor[1]["all_cpu_us_per_line"].as_f64().unwrap();
    assert!(floor_us > 0.0, "{report:#}");
    let figure = |name: &str| this[1][name].as_f64().unwrap();
    assert_eq!(figure("lost_lines"), 0.0, "{report:#}");
    assert_eq!(figure("copied_lines"), 0.0, "{report:#}");
    let measured = [
        "driver_cpu_us_per_line",
        "shipper_cpu_us_per_line",
        "driver_switches_per_s",
        "driver_rss_mib",
        "requests_per_s",
        "sent_bytes_per_line",
        "latency_p50_ms",
    ];
    for name in measured {
        assert!(figure(name) > 0.0, "{name}: {report:#}");
    }
    assert!(figure("plain_bytes_per_line") > figure("sent_bytes_per_line"));
}

#[test]
fn a_load_that_there_is_not_and_a_build_that_is_missing_are_named() {
    let program = binary("cls-bench").unwrap();
    let said = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("CLS_BIN_DIR", program.parent().unwrap());
        let output = command.args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = said(&["--load=2x2"]);
    assert!(error.contains("--load 2x2: there are 1x10, "), "{error}");
    let error = said(&["--against=/nonexistent/build"]);
    let expected = "/nonexistent/build/cls-driver does not exist: `make build` makes it";
    assert!(error.contains(expected), "{error}");
}

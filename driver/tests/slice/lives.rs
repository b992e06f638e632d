//! What becomes of a stream whatever fails around it: its record, its shipper, a second driver; and what is
//! left of it on disk.

use super::*;

/// Returns the text of all files in the state folder.
fn all_on_disk(host: &Host) -> String {
    let mut text = String::new();
    let mut folders = vec![host.path().join("state")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => {
                    let bytes = std::fs::read(entry.path()).unwrap_or_default();
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
            }
        }
    }
    text
}

/// Writes more than a pipe holds, within the time that anything may take.
pub async fn writes_on(container: &mut Container, line_count: u64) {
    let written = tokio::time::timeout(PATIENCE, container.write_lines(line_count)).await;
    assert!(written.is_ok(), "the FIFO is not read");
}

/// Whatever became of its record, a container that writes must not stand still.
#[tokio::test]
async fn a_fifo_whose_record_is_damaged_is_read_and_its_lines_are_shipped() {
    let host = Host::new();
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(10).await;
    driver.drop_abruptly().await;
    let record = host.streams().remove(0).join("meta.json");
    let text = std::fs::read(&record).unwrap();
    std::fs::write(&record, &text[..text.len() / 2]).unwrap();
    let driver = host.run();
    writes_on(&mut container, 20_000).await;
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    assert!(host.stop(&container).await < STOP_MAX);
    container.close();
    host.no_stream_is_left().await;
    let name = container.file.file_name().unwrap().to_str().unwrap();
    let log = shipper.log_of(name);
    assert_eq!(log.lines(), &numbered_lines(20_010)[10..]);
    assert_eq!(host.damaged_count(), 1);
    driver.stop().await;
}

/// The engine makes a FIFO before it says whose it is: until then nothing is in it.
#[tokio::test]
async fn a_fifo_that_the_engine_is_about_to_name_is_left_to_its_start() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let mut container = Container::new(host.path(), "c1");
    let driver = host.run();
    connect(&host.plugin()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    host.start(&container, "{}").await;
    container.write_lines(10).await;
    container.close();
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("c1").lines(), numbered_lines(10));
    driver.stop().await;
}

#[tokio::test]
async fn another_shipper_is_tried_when_one_takes_calls_and_says_nothing() {
    let host = Host::new();
    let other = host.path().join("other.sock");
    let list = format!(
        "unix://{},unix://{}",
        host.shipper().display(),
        other.display()
    );
    let host = host.with("SHIPPER", &list);
    let silent = Behaviour {
        delay: Duration::from_secs(3600),
        ..Behaviour::default()
    };
    let _first = FakeShipper::start(&host.shipper(), silent);
    let second = FakeShipper::start(&other, Behaviour::default());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(10).await;
    let began = Instant::now();
    let lines = || -> Vec<String> {
        let logs = &second.state().logs;
        logs.values().flat_map(|log| log.lines()).collect()
    };
    while began.elapsed() < Duration::from_secs(40) && lines().len() < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(lines(), numbered_lines(10));
    driver.drop_abruptly().await;
}

#[tokio::test]
async fn a_second_driver_on_the_same_socket_says_so_and_harms_nothing() {
    let host = Host::new();
    let driver = host.run();
    connect(&host.plugin()).await;
    let second = driver::run(
        host.config(),
        Arc::new(RealDisk),
        std::future::pending::<()>(),
    );
    let ended = tokio::time::timeout(PATIENCE, second).await;
    let is_refused = matches!(ended, Ok(Err(RunError::Bind(_))));
    assert!(is_refused, "{ended:?}");
    let connected = tokio::net::UnixStream::connect(host.plugin()).await;
    assert!(connected.is_ok(), "the first one is still there");
    // One that waits for the end of the first takes its place.
    let next = host.run();
    tokio::time::sleep(Duration::from_millis(300)).await;
    driver.stop().await;
    connect(&host.plugin()).await;
    let (status, _) = call(&host.plugin(), "Plugin.Activate", "").await;
    assert_eq!(status, OK);
    next.stop().await;
}

#[tokio::test]
async fn nothing_of_a_container_that_is_gone_stays_on_disk_but_its_lines() {
    let host = Host::new();
    let _shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    let options = r#"{"secret_id":"ID-SECRET","secret_key":"KEY-SECRET"}"#;
    let body = container.start_body(options);
    let body = body.replace(
        r#""ContainerEnv":null"#,
        r#""ContainerEnv":["PASSWORD=ENV-SECRET"]"#,
    );
    let body = body.replace(r#"["-c","x"]"#, r#"["--password","ARG-SECRET"]"#);
    let (_, body) = call(&host.plugin(), "LogDriver.StartLogging", &body).await;
    assert_eq!(body, NO_ERR);
    container.write_lines(10).await;
    assert!(all_on_disk(&host).contains("ENV-SECRET"), "while it lives");
    host.stop(&container).await;
    container.close();
    host.no_stream_is_left().await;
    let (code, listed) = journal(&host, &["ls"]).await;
    assert_eq!(
        (code, listed.lines().count()),
        (0, 2),
        "its lines are kept: {listed}"
    );
    assert!(listed.contains("name"), "{listed}");
    let text = all_on_disk(&host);
    assert!(text.contains("xxxx") && !text.contains("SECRET"), "{text}");
    driver.stop().await;
}

#[tokio::test]
async fn verify_names_each_kind_of_damage_and_no_bad_folder_hides_another() {
    let host = Host::new();
    let driver = host.run();
    let mut containers = Vec::new();
    for id in ["good", "state", "record", "aside"] {
        let mut container = Container::new(host.path(), id);
        host.start(&container, "{}").await;
        container.write_lines(3).await;
        containers.push(container);
    }
    driver.stop().await;
    let folder_of = |id: &str| {
        let mut folders = host.streams().into_iter();
        let has_id = |folder: &PathBuf| {
            let record = std::fs::read_to_string(folder.join("meta.json")).unwrap_or_default();
            record.contains(&format!(r#""ContainerID":"{id}""#))
        };
        folders.find(has_id).unwrap()
    };
    let aside = folder_of("aside");
    std::fs::rename(&aside, aside.with_extension("damaged")).unwrap();
    std::fs::write(folder_of("state").join("state"), "garbage").unwrap();
    std::fs::write(folder_of("record").join("meta.json"), "{").unwrap();
    let (code, said) = journal(&host, &["verify"]).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("3 faults"), "{said}");
    for what in ["state", "meta.json", "set aside"] {
        assert!(said.contains(what), "{what}: {said}");
    }
    let (code, listed) = journal(&host, &["ls"]).await;
    assert_eq!(code, 0, "{listed}");
    assert_eq!(listed.lines().count(), 5, "{listed}");
}

/// Runs a container whose journal is in memory, ends its process, and returns the holes that the next one tells.
async fn holes_after_memory(is_shipped: bool) -> Vec<(u64, String)> {
    let host = Host::new();
    let shipper = is_shipped.then(|| FakeShipper::start(&host.shipper(), Behaviour::default()));
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, r#"{"no-file":"true"}"#).await;
    container.write_lines(10).await;
    host.stop(&container).await;
    match &shipper {
        Some(shipper) => {
            let is_acked = |state: &fake::State| state.logs.values().any(|log| log.acked > 0);
            shipper.wait("all is acknowledged", is_acked).await;
            driver.stop().await;
        }
        None => driver.drop_abruptly().await,
    }
    drop(shipper);
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    container.write_lines(5).await;
    connect(&host.plugin()).await;
    host.stop(&container).await;
    container.close();
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    assert_eq!(log.lines(), &numbered_lines(15)[10..]);
    driver.stop().await;
    let holes = log.holes.into_iter();
    holes.map(|hole| (hole.entries, hole.reason)).collect()
}

#[tokio::test]
async fn entries_in_memory_that_went_with_their_process_leave_a_hole() {
    let lost = (0, "memory_lost".to_owned());
    assert_eq!(holes_after_memory(false).await, [lost]);
}

#[tokio::test]
async fn a_process_that_ends_with_nothing_in_memory_leaves_no_hole() {
    assert_eq!(holes_after_memory(true).await, []);
}

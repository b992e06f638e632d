//! Keys that change under load: no line is lost, no process starts again, no key is shown.
//!
//! Method: 20 containers of one host write 1,000 lines/s each, in real processes, while the keys
//! change in what the shipper reads and in the stand-in. Afterwards everything that both processes
//! have written, and all that the shipper's admin server shows, is searched for every key.

use crate::fleet::{Cloud, Writing, driver, shipper};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use world::metadata::Metadata;
use world::nodes::{Driver, Shipper, everything_in};
use world::standin::config::Key;

const CONTAINERS: usize = 20;
const LINES_PER_S: u32 = 1_000;

/// A pause of uploads within which a rotation must be over, also on a machine that is shared.
const GAP_MAX: Duration = Duration::from_secs(2);

/// A host under load.
struct Site {
    cloud: Cloud,
    shipper: Shipper,
    driver: Driver,
    writing: Writing,
}

impl Site {
    /// Starts a host whose shipper has `credentials`, and containers that write for `seconds`.
    async fn start(cloud: Cloud, credentials: &str, seconds: u64) -> Self {
        let mut settings = cloud.shipper("", "");
        settings.credentials = credentials.to_owned();
        settings.log_level = "debug";
        let shipper = shipper(settings).await;
        let endpoint = format!("unix://{}", shipper.socket().display());
        let mut driver = driver("host-1", &endpoint, &[("LOG_LEVEL", "debug")]).await;
        let mut writing = Writing::new();
        for number in 0..CONTAINERS {
            let lines = u64::from(LINES_PER_S) * seconds;
            let name = format!("s{number}");
            writing.start(&mut driver, &name, lines, LINES_PER_S).await;
        }
        Self {
            cloud,
            shipper,
            driver,
            writing,
        }
    }

    /// Waits for all lines, and checks that nothing is lost, that neither process has ended, and
    /// that none of the keys is anywhere.
    async fn finish(mut self, what: &str, keys: &[Key]) -> Cloud {
        let pipes = self.writing.finish().await;
        let report = self.cloud.settle(&self.writing.scripts).await;
        let nodes = format!("{}\n{}", self.driver.log(), self.shipper.log());
        assert!(report.is_exact(), "{report}{nodes}");
        assert!(self.driver.process.is_running() && self.running());
        let dead_letters = self.shipper.metric("cls_shipper_dead_letters_total").await;
        assert_eq!(dead_letters.unwrap(), 0);
        assert_eq!(self.cloud.standin.violations(), Vec::<String>::new());
        self.search(keys).await;
        eprintln!(
            "{what}: {CONTAINERS} containers at {LINES_PER_S} lines/s; longest pause of uploads \
             {:?}; {report}",
            self.cloud.longest_gap()
        );
        drop(pipes);
        self.cloud
    }

    fn running(&mut self) -> bool {
        let process = self.shipper.process.as_mut();
        process.is_some_and(|process| process.is_running())
    }

    async fn search(&self, keys: &[Key]) {
        let admin = ["/metrics", "/api/ledger"];
        for path in admin {
            check_without(&self.shipper.admin(path).await.unwrap(), keys, path);
        }
        for dir in [self.shipper.dir(), self.driver.dir()] {
            let all = everything_in(dir).unwrap();
            assert!(all.contains(".log"), "there is something to search");
            check_without(&all, keys, &dir.display().to_string());
        }
    }
}

fn check_without(text: &str, keys: &[Key], place: &str) {
    for key in keys {
        let secrets = [
            Some(&key.secret_id),
            Some(&key.secret_key),
            key.token.as_ref(),
        ];
        for secret in secrets.into_iter().flatten() {
            assert!(!text.contains(secret.as_str()), "{secret} is in {place}");
        }
    }
}

fn key(number: u32) -> Key {
    let (id, secret) = (
        format!("AKIDEXAMPLE{number}X"),
        format!("SKEXAMPLE{number}X"),
    );
    Key::permanent(&id, &secret)
}

fn content(key: &Key) -> String {
    let (id, secret) = (&key.secret_id, &key.secret_key);
    format!(r#"{{"secret_id": "{id}", "secret_key": "{secret}"}}"#)
}

/// A folder with the file `keys`, as Kubernetes makes it of a secret: a link to a file in a folder
/// that is itself reached through a link, and only that one changes.
struct Secret {
    dir: tempfile::TempDir,
    versions: u32,
}

impl Secret {
    fn new(key: &Key) -> Self {
        let dir = tempfile::tempdir().unwrap();
        symlink("..data/keys", dir.path().join("keys")).unwrap();
        let mut secret = Self { dir, versions: 0 };
        secret.swap(key);
        secret
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    /// Swaps the link to the folder.
    fn swap(&mut self, key: &Key) {
        self.versions += 1;
        let version = self.dir.path().join(format!("..{}", self.versions));
        std::fs::create_dir(&version).unwrap();
        std::fs::write(version.join("keys"), content(key)).unwrap();
        let link = self.dir.path().join("..data_tmp");
        symlink(Path::new(version.file_name().unwrap()), &link).unwrap();
        std::fs::rename(link, self.dir.path().join("..data")).unwrap();
    }

    /// Puts another file in place of the link.
    fn replace(&self, key: &Key) {
        let new = self.dir.path().join("keys.new");
        std::fs::write(&new, content(key)).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }

    fn source(&self) -> String {
        format!("source = \"file\"\npath = \"{}\"", self.path().display())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_replaced_and_then_revoked_costs_no_line() {
    let keys = [1, 2, 3].map(key);
    let cloud = Cloud::start().await;
    cloud.standin.replace_keys(vec![keys[0].clone()]);
    let mut secret = Secret::new(&keys[0]);
    let site = Site::start(cloud, &secret.source(), 6).await;
    let signed_with = |key: &Key| {
        let secret_id = key.secret_id.clone();
        site.cloud
            .arrival(move |arrival| arrival.secret_id == secret_id)
    };
    signed_with(&keys[0]).await;
    sleep(Duration::from_secs(1)).await;
    site.cloud.standin.replace_keys(keys[..2].to_vec());
    secret.swap(&keys[1]);
    site.cloud.standin.replace_keys(vec![keys[1].clone()]);
    signed_with(&keys[1]).await;
    sleep(Duration::from_secs(1)).await;
    site.cloud.standin.replace_keys(keys[1..].to_vec());
    secret.replace(&keys[2]);
    site.cloud.standin.replace_keys(vec![keys[2].clone()]);
    signed_with(&keys[2]).await;
    let cloud = site.finish("a key file replaced twice", &keys).await;
    assert!(cloud.longest_gap() < GAP_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temporary_keys_that_live_for_seconds_cost_no_line() {
    let cloud = Cloud::start().await;
    let metadata = Metadata::start(cloud.standin.clone(), 3).await.unwrap();
    let source = format!("source = \"cvm-role\"\nurl = \"{}\"", metadata.url());
    let site = Site::start(cloud, &source, 8).await;
    let cloud = site
        .finish("temporary keys of 3 s", &metadata.issued())
        .await;
    let mut used: Vec<_> = cloud.arrivals().into_iter().map(|a| a.secret_id).collect();
    used.dedup();
    used.sort();
    used.dedup();
    assert!(used.len() >= 3, "keys used: {used:?}");
    assert!(cloud.longest_gap() < GAP_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_revoked_too_early_holds_the_lane_until_the_next_one_comes() {
    let keys = [1, 2].map(key);
    let cloud = Cloud::start().await;
    cloud.standin.replace_keys(vec![keys[0].clone()]);
    let mut secret = Secret::new(&keys[0]);
    let site = Site::start(cloud, &secret.source(), 6).await;
    site.cloud.arrival(|_| true).await;
    sleep(Duration::from_secs(1)).await;
    site.cloud.standin.replace_keys(vec![keys[1].clone()]);
    sleep(Duration::from_secs(3)).await;
    let replaced = Instant::now();
    secret.swap(&keys[1]);
    let secret_id = keys[1].secret_id.clone();
    let arrival = site
        .cloud
        .arrival(move |arrival| arrival.secret_id == secret_id);
    let resumed = arrival.await;
    eprintln!(
        "uploads went on {:?} after the new key was there",
        resumed - replaced
    );
    assert!(resumed - replaced < GAP_MAX);
    let log = site.shipper.log();
    assert!(log.contains("the lane holds until this is repaired; nothing is dropped"));
    site.finish("a key revoked 3 s before its successor came", &keys)
        .await;
}

//! Keys that change under load: no line is lost, no process starts again, no key is shown.
//!
//! Method: 50 containers of one host write 20,000 lines/s in sum, in real processes. They use four
//! credential sources whose keys change meanwhile, each in its own way, in what the shipper reads and
//! in the stand-in. Afterwards everything that both processes have written, and all that the shipper's
//! admin server shows, is searched for every key.

use crate::fleet::{Cloud, Writing, driver, shipper, wait};
use shipper::base::clock::WallClock;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use world::dockerd::Info;
use world::metadata::{CVM_KEY, Metadata, OIDC_KEY, WEB_IDENTITY};
use world::nodes::{Driver, Shipper, everything_in};
use world::processes::TOPIC_ID;
use world::script::Script;
use world::standin::config::Key;

/// The credential sources, each with the containers that use it.
const GROUPS: [(&str, u32); 4] = [("file", 12), ("early", 12), ("cvm", 13), ("oidc", 13)];
const LINES_PER_S: u32 = 400;
/// How long the containers write.
const SECONDS: u64 = 14;
/// How long temporary keys live.
const KEY_LIFE_S: u64 = 10;

/// A pause of uploads within which a rotation must be over, also on a machine that is shared.
const GAP_MAX: Duration = Duration::from_secs(2);

/// How ids of keys begin that stand in the file of a source.
const FILE_KEY: &str = "AKIDFILE";
const EARLY_KEY: &str = "AKIDEARLY";

/// A host under load.
struct Site {
    cloud: Cloud,
    shipper: Shipper,
    driver: Driver,
    writing: Writing,
}

impl Site {
    /// Starts a host whose shipper has `sources`, and the containers.
    async fn start(cloud: Cloud, sources: &str) -> Self {
        let mut settings = cloud.shipper("", sources);
        settings.log_level = "debug";
        let shipper = shipper(settings).await;
        let endpoint = format!("unix://{}", shipper.socket().display());
        let mut driver = driver("host-1", &endpoint, &[("LOG_LEVEL", "debug")]).await;
        let mut writing = Writing::new();
        let lines = u64::from(LINES_PER_S) * SECONDS;
        for (source, containers) in GROUPS {
            for number in 0..containers {
                let name = format!("{source}{number}");
                let log_opts = [("credentials", source)];
                writing
                    .start_with(&mut driver, &name, lines, LINES_PER_S, &log_opts)
                    .await;
            }
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
    async fn finish(mut self, permanent: Vec<Key>, metadata: &Metadata) -> Cloud {
        let pipes = self.writing.finish().await;
        let report = self.cloud.settle(&self.writing.scripts).await;
        let nodes = format!("{}\n{}", self.driver.log(), self.shipper.log());
        assert!(report.is_exact(), "{report}{nodes}");
        assert!(self.driver.process.is_running() && self.running());
        let dead_letters = self.shipper.metric("cls_shipper_dead_letters_total").await;
        assert_eq!(dead_letters.unwrap(), 0);
        assert_eq!(self.cloud.standin.violations(), Vec::<String>::new());
        let keys = [permanent, metadata.issued()].concat();
        self.search(&keys).await;
        let containers: u32 = GROUPS.iter().map(|(_, count)| count).sum();
        eprintln!("{containers} containers at {LINES_PER_S} lines/s: {report}");
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

fn key(prefix: &str, number: u32) -> Key {
    let id = format!("{prefix}{number}X");
    Key::permanent(&id, &format!("SKOF{id}"))
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

    fn source(&self, name: &str) -> String {
        let path = self.path();
        let path = path.display();
        format!("[credentials.{name}]\nsource = \"file\"\npath = \"{path}\"\n")
    }
}

/// What the shipper reads of the four sources.
struct Sources {
    file: Secret,
    early: Secret,
    web_identity: tempfile::NamedTempFile,
}

impl Sources {
    fn new(file: &Key, early: &Key) -> Self {
        let web_identity = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(web_identity.path(), WEB_IDENTITY).unwrap();
        Self {
            file: Secret::new(file),
            early: Secret::new(early),
            web_identity,
        }
    }

    fn sections(&self, url: &str) -> String {
        let (file, early) = (self.file.source("file"), self.early.source("early"));
        let token_file = self.web_identity.path().display();
        format!(
            r#"{file}{early}
[credentials.cvm]
source = "cvm-role"
url = "{url}"
[credentials.oidc]
source = "tke-oidc"
url = "{url}"
region = "ap-guangzhou"
provider_id = "provider"
role_arn = "qcs::cam::uin/1:roleName/r"
token_file = "{token_file}"
"#
        )
    }
}

/// The key of a file is replaced (by a swap of links, by a rename) and then revoked; that of another
/// file is revoked 4 s before its successor comes; temporary keys expire every 10 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_all_sources_change_under_load_and_cost_no_line() {
    let file = [1, 2, 3].map(|number| key(FILE_KEY, number));
    let early = [1, 2].map(|number| key(EARLY_KEY, number));
    let cloud = Cloud::start().await;
    let metadata = Metadata::start(cloud.standin.clone(), KEY_LIFE_S)
        .await
        .unwrap();
    let valid = |keys: [&Key; 2]| metadata.accept_permanent(keys.map(Key::clone).to_vec());
    valid([&file[0], &early[0]]);
    let mut sources = Sources::new(&file[0], &early[0]);
    let site = Site::start(cloud, &sources.sections(&metadata.url())).await;
    let first_of = async |prefix: &str| {
        let arrival = site
            .cloud
            .arrival(|arrival| arrival.secret_id.starts_with(prefix));
        arrival.await
    };
    for prefix in [FILE_KEY, EARLY_KEY, CVM_KEY, OIDC_KEY] {
        first_of(prefix).await;
    }
    let began = Instant::now();
    let at = |seconds| sleep_until(began + Duration::from_secs(seconds));
    at(1).await;
    sources.file.swap(&file[1]);
    valid([&file[1], &early[0]]);
    first_of(&file[1].secret_id).await;
    at(2).await;
    valid([&file[1], &file[1]]);
    at(3).await;
    sources.file.replace(&file[2]);
    valid([&file[2], &file[2]]);
    first_of(&file[2].secret_id).await;
    at(6).await;
    valid([&file[2], &early[1]]);
    let replaced = Instant::now();
    sources.early.swap(&early[1]);
    let resumed_in = first_of(&early[1].secret_id).await - replaced;
    let log = site.shipper.log();
    assert!(log.contains("the lane holds until this is repaired; nothing is dropped"));
    let keys = file.into_iter().chain(early).collect();
    let cloud = site.finish(keys, &metadata).await;
    let gaps = [FILE_KEY, CVM_KEY, OIDC_KEY].map(|prefix| cloud.longest_gap(prefix));
    eprintln!(
        "longest pauses of uploads: file {:?}, cvm-role {:?}, tke-oidc {:?}; uploads went on \
         {resumed_in:?} after the key that was late",
        gaps[0], gaps[1], gaps[2]
    );
    for prefix in [CVM_KEY, OIDC_KEY] {
        let arrivals = cloud.arrivals();
        let ids = arrivals.iter().map(|arrival| &arrival.secret_id);
        let used: std::collections::BTreeSet<_> = ids.filter(|id| id.starts_with(prefix)).collect();
        assert!(used.len() >= 2, "keys used: {used:?}");
    }
    assert!(gaps.iter().all(|gap| *gap < GAP_MAX));
    assert!(resumed_in < GAP_MAX);
}

/// CLS itself would go on taking the key that has expired: it is the shipper that stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_expires_in_its_file_holds_its_lane_until_the_next_one_comes() {
    const LIFE_S: u64 = 3;
    let keys = [1, 2].map(|number| key(FILE_KEY, number));
    let cloud = Cloud::start().await;
    cloud.standin.replace_keys(keys.to_vec());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let write = |key: &Key, life_s: u64| {
        let expiration = WallClock::system().unix_s() + life_s;
        let content = content(key).replace('}', &format!(r#", "expiration": {expiration}}}"#));
        std::fs::write(&path, content).unwrap();
    };
    let mut settings = cloud.shipper("", "");
    settings.credentials = format!("source = \"file\"\npath = \"{}\"", path.display());
    let shipper = shipper(settings).await;
    let endpoint = format!("unix://{}", shipper.socket().display());
    let mut driver = driver("host-1", &endpoint, &[]).await;
    let mut writing = Writing::new();
    write(&keys[0], LIFE_S);
    writing.start(&mut driver, "s", 8_000, 1_000).await;
    let of_key = |key: &Key| {
        let arrivals = cloud.arrivals().into_iter();
        arrivals
            .filter(|one| one.secret_id == key.secret_id)
            .count()
    };
    let said = async |what: &str| {
        wait(what, &shipper.log(), async || shipper.log().contains(what)).await;
    };
    said("expires soon").await;
    said("has expired at").await;
    // What was under way then has arrived.
    sleep(Duration::from_millis(500)).await;
    let by_first = of_key(&keys[0]);
    sleep(Duration::from_secs(2)).await;
    assert!(by_first > 0);
    assert_eq!(of_key(&keys[0]), by_first, "{}", shipper.log());
    write(&keys[1], 3_600);
    let pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    let log = shipper.log();
    assert!(report.is_exact(), "{report}{log}");
    assert!(of_key(&keys[1]) > 0 && of_key(&keys[0]) == by_first);
    let warned = log.lines().filter(|line| line.contains("expires soon"));
    assert_eq!(warned.count(), 1, "{log}");
    let told = log.lines().find(|line| line.contains("has expired at"));
    let told = told.unwrap();
    let file = path.display().to_string();
    assert!(told.contains("ERROR") && told.contains(&file), "{told}");
    assert!(told.contains("the lane holds"), "{told}");
    check_without(&log, &keys, "a log");
    drop(pipes);
}

/// Keys in log options work, and each of both processes says once what would be safer: the shipper
/// once per container, also when it starts again, the driver at each start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_in_log_options_work_and_are_warned_of() {
    let own = key("AKIDOWN", 1);
    let cloud = Cloud::start().await;
    cloud.standin.replace_keys(vec![own.clone()]);
    let shipper = shipper(cloud.shipper("", "")).await;
    let endpoint = format!("unix://{}", shipper.socket().display());
    let mut driver = driver("host-1", &endpoint, &[]).await;
    let log_opts = [
        ("secret_id", own.secret_id.as_str()),
        ("secret_key", own.secret_key.as_str()),
    ];
    let info = Info::new("own", &log_opts);
    for number in 1..=2 {
        let mut pipe = driver.dockerd.start_logging(&info).await.unwrap();
        let script = Script::new(&format!("start{number}"), 10, 200);
        script.write(&mut pipe, None).unwrap();
        driver.dockerd.stop_logging(pipe).await.unwrap();
        let report = cloud.settle(&[script]).await;
        assert_eq!(report.lost, 0, "{report}{}", shipper.log());
    }
    let uploads = cloud.standin.uploads(TOPIC_ID);
    let mut signed_by = uploads.iter().map(|upload| upload.secret_id.as_deref());
    assert!(signed_by.all(|id| id == Some(&own.secret_id)));
    for (log, expected) in [(shipper.log(), 1), (driver.log(), 2)] {
        let warnings = log.lines().filter(|line| line.contains("secret_id"));
        let warnings: Vec<_> = warnings.collect();
        assert_eq!(warnings.len(), expected, "{log}");
        let is_told = |line: &&str| line.contains("WARN") && line.contains("credentials");
        assert!(warnings.iter().all(is_told), "{warnings:?}");
        check_without(&log, std::slice::from_ref(&own), "a log");
    }
}

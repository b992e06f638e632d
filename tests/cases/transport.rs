//! The wire between hosts: TLS 1.3 with certificates or tokens, both of which change while lines
//! flow; and what is said, on either side, when something about it is wrong.
//!
//! Method: real processes on loopback TCP; certificates are made by the case.

use crate::fleet::{Cloud, Writing, driver, shipper, wait};
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, KeyPair};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::sleep;
use world::nodes::{Driver, Shipper, everything_in};
use world::processes::free_address;

/// Handshakes that the shipper has under way at most, as `tls.rs` has it.
const HANDSHAKES_MAX: usize = 256;

/// An authority, and the folder in which everything it signs stands.
pub(crate) struct Authority {
    certificate: Certificate,
    key: KeyPair,
    dir: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::in_folder(name, tempfile::tempdir().unwrap())
    }

    /// Returns another authority, whose certificate takes the place of this one's.
    fn succeeded_by(self, name: &str) -> Self {
        Self::in_folder(name, self.dir)
    }

    fn in_folder(name: &str, dir: tempfile::TempDir) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        put(&dir.path().join("ca.pem"), &certificate.pem());
        Self {
            certificate,
            key,
            dir,
        }
    }

    /// Signs a certificate for a DNS name and puts it and its key into `<file>.pem`, `<file>.key`.
    pub(crate) fn sign(&self, file: &str, dns_name: &str, is_expired: bool) {
        let mut params = CertificateParams::new(vec![dns_name.to_owned()]).unwrap();
        if is_expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.certificate, &self.key);
        put(&self.path(&format!("{file}.pem")), &signed.unwrap().pem());
        put(&self.path(&format!("{file}.key")), &key.serialize_pem());
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub(crate) fn text(&self, file: &str) -> String {
        self.path(file).to_str().unwrap().to_owned()
    }
}

/// Replaces a file in one step.
fn put(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Starts a shipper with TLS whose certificate is `<server>.pem`, for hosts that show a certificate
/// of the authority or the token in `token`.
async fn secured(cloud: &Cloud, authority: &Authority, server: &str, log: &'static str) -> Site {
    let address = free_address().unwrap();
    let [cert, key, ca, token] = [
        format!("{server}.pem"),
        format!("{server}.key"),
        "ca.pem".to_owned(),
        "token".to_owned(),
    ]
    .map(|file| authority.text(&file));
    let listen = format!(
        "tcp = \"{address}\"\n[listen.tls]\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n\
         client_ca_file = \"{ca}\""
    );
    let tenants = format!(
        "[[tenants]]\nname = \"certificates\"\ncertificate = \"host-*\"\n\
         [[tenants]]\nname = \"tokens\"\ntoken_file = \"{token}\"\nhosts = [\"*\"]"
    );
    let mut settings = cloud.shipper(&listen, &tenants);
    settings.log_level = log;
    Site {
        shipper: shipper(settings).await,
        address,
    }
}

struct Site {
    shipper: Shipper,
    address: SocketAddr,
}

impl Site {
    fn endpoint(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

fn connections(driver: &Driver) -> usize {
    driver.log().matches("connected to a shipper").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_tokens_change_under_streams_that_go_on() {
    let cloud = Cloud::start().await;
    let authority = Authority::new("authority");
    authority.sign("server", "localhost", false);
    authority.sign("host-1", "host-1", false);
    put(&authority.path("token"), "TOKENEXAMPLE1X");
    let mut site = secured(&cloud, &authority, "server", "trace").await;
    let (endpoint, ca) = (site.endpoint(), authority.text("ca.pem"));
    let (cert, key) = (authority.text("host-1.pem"), authority.text("host-1.key"));
    let token = authority.text("token");
    let base = [("SHIPPER_CA_FILE", ca.as_str()), ("LOG_LEVEL", "trace")];
    let own = [
        ("SHIPPER_CERT_FILE", cert.as_str()),
        ("SHIPPER_KEY_FILE", key.as_str()),
    ];
    let bearer = [("SHIPPER_TOKEN_FILE", token.as_str())];
    let mut drivers = vec![
        driver("host-1", &endpoint, &[&base[..], &own].concat()).await,
        driver("host-2", &endpoint, &[&base[..], &bearer].concat()).await,
    ];
    let mut writing = Writing::new();
    for (number, driver) in drivers.iter_mut().enumerate() {
        let name = format!("s{}", number + 1);
        writing.start(driver, &name, 2_000, 400).await;
    }
    for host in ["host-1", "host-2"] {
        cloud.arrival(|arrival| arrival.host == host).await;
    }
    // All that either side has is replaced: nothing of what was read before is of use any more.
    let authority = authority.succeeded_by("successor");
    authority.sign("server", "localhost", false);
    authority.sign("host-1", "host-1", false);
    put(&authority.path("token"), "TOKENEXAMPLE2X");
    let mut third = driver("host-3", &endpoint, &[&base[..], &bearer].concat()).await;
    writing.start(&mut third, "s3", 500, 400).await;
    cloud.arrival(|arrival| arrival.host == "host-3").await;
    assert_eq!(drivers.iter().map(connections).collect::<Vec<_>>(), [1, 1]);
    // After this, all of them show what the files hold now.
    site.shipper.kill().unwrap();
    site.shipper.up().await.unwrap();
    let _pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    drivers.push(third);
    let mut all = everything_in(site.shipper.dir()).unwrap();
    for driver in &drivers {
        let has_dialled_anew = async || connections(driver) >= 2;
        wait("another connection", &driver.log(), has_dialled_anew).await;
        all.push_str(&everything_in(driver.dir()).unwrap());
    }
    eprintln!("TLS with certificates and tokens that change: {report}");
    assert!(report.is_at_least_once(), "{report}");
    assert!(
        !all.contains("TOKENEXAMPLE"),
        "a token is in what was written"
    );
}

/// Starts a driver that can't succeed, and waits until it says `expected`.
async fn check_driver(endpoint: &str, settings: &[(&str, &str)], expected: &str) {
    let driver = driver("host-1", endpoint, settings).await;
    let is_said = async || driver.log().contains(expected);
    let what = format!("{expected:?} for {endpoint} with {settings:?}");
    let said = world::processes::wait_until(&what, Duration::from_secs(10), is_said).await;
    assert!(said.is_ok(), "{what}:\n{}", driver.log());
    assert!(driver.log().contains("no shipper can be reached"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_the_wire_is_named_with_what_to_do() {
    let cloud = Cloud::start().await;
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    authority.sign("server", "localhost", false);
    authority.sign("expired", "localhost", true);
    stranger.sign("host-1", "host-1", false);
    put(&authority.path("token"), "TOKENEXAMPLE1X");
    put(&authority.path("wrong"), "TOKENEXAMPLE2X");
    let site = secured(&cloud, &authority, "server", "info").await;
    let expired = secured(&cloud, &authority, "expired", "info").await;
    let plain_address = free_address().unwrap();
    let plain_listen = format!("tcp = \"{plain_address}\"");
    let plain = shipper(cloud.shipper(&plain_listen, "")).await;

    let [ca, strange_ca] = [&authority, &stranger].map(|authority| authority.text("ca.pem"));
    let trusted = [("SHIPPER_CA_FILE", ca.as_str())];
    let endpoint = site.endpoint();
    let expected = "the shipper's certificate has expired: renew its cert_file";
    check_driver(&expired.endpoint(), &trusted, expected).await;
    let by_address = format!("https://{}", site.address);
    let expected = "SHIPPER must use a name that is in the shipper's cert_file";
    check_driver(&by_address, &trusted, expected).await;
    let expected = "SHIPPER_CA_FILE must hold the CA that signed the shipper's cert_file";
    check_driver(&endpoint, &[("SHIPPER_CA_FILE", &strange_ca)], expected).await;
    let expected =
        "the shipper wants a client certificate or a bearer token: set SHIPPER_CERT_FILE";
    check_driver(&endpoint, &trusted, expected).await;
    let wrong = authority.text("wrong");
    let wrong = [trusted[0], ("SHIPPER_TOKEN_FILE", wrong.as_str())];
    let expected = "compare SHIPPER_TOKEN_FILE with token_file";
    check_driver(&endpoint, &wrong, expected).await;
    let (cert, key) = (stranger.text("host-1.pem"), stranger.text("host-1.key"));
    let strange = [
        trusted[0],
        ("SHIPPER_CERT_FILE", cert.as_str()),
        ("SHIPPER_KEY_FILE", key.as_str()),
    ];
    let expected = "must be valid now and signed by the shipper's client_ca_file";
    check_driver(&endpoint, &strange, expected).await;
    let without_tls = format!("http://{}", site.address);
    let expected = "if the shipper has [listen.tls], begin SHIPPER with https://";
    check_driver(&without_tls, &[], expected).await;
    let to_plain = format!("https://localhost:{}", plain_address.port());
    let expected = "this port speaks no TLS: begin SHIPPER with http://";
    check_driver(&to_plain, &trusted, expected).await;
    let distrust =
        "SHIPPER_CA_FILE must hold the CA of cert_file, and cert_file must name the host";
    check_shipper_log(&expired.shipper, &[distrust]);
    check_shipper_log(
        &plain,
        &["this port does not: set [listen.tls], or begin its SHIPPER with"],
    );
    let expected = [
        distrust,
        "wants a client certificate or a bearer token: set SHIPPER_CERT_FILE",
        "the token is not that of any tenant of the shipper; compare SHIPPER_TOKEN_FILE",
        "the peer's certificate must be valid now and signed by client_ca_file",
        "the peer speaks no TLS: its SHIPPER must begin with https://",
    ];
    check_shipper_log(&site.shipper, &expected);
    let refused = site.shipper.metric("cls_shipper_refused_calls_total").await;
    assert!(refused.unwrap() >= 2);
}

/// What a shipper logs of the same faults: each kind at least once.
fn check_shipper_log(shipper: &Shipper, expected: &[&str]) {
    let log = shipper.log();
    for expected in expected {
        assert!(log.contains(expected), "{expected}:\n{log}");
    }
    assert!(!log.contains("TOKENEXAMPLE"), "{log}");
}

/// A call ends for its age although its host has nothing to ship: that is no trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_host_changes_its_connection_in_silence() {
    let cloud = Cloud::start().await;
    let address = free_address().unwrap();
    let listen = format!("tcp = \"{address}\"\nconnection_age_max_s = 2");
    let tenants = "[[tenants]]\nname = \"any\"\nanyone = true";
    let _shipper = shipper(cloud.shipper(&listen, tenants)).await;
    let driver = driver("host-1", &format!("http://{address}"), &[]).await;
    let has_changed = async || connections(&driver) >= 3;
    wait("two further connections", &driver.log(), has_changed).await;
    let log = driver.log();
    assert!(!log.contains("no shipper can be reached"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_begin_tls_and_say_nothing_keep_nobody_out() {
    let cloud = Cloud::start().await;
    let authority = Authority::new("authority");
    authority.sign("server", "localhost", false);
    put(&authority.path("token"), "TOKENEXAMPLE1X");
    let site = secured(&cloud, &authority, "server", "info").await;
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES_MAX + 44 {
        silent.push(TcpStream::connect(site.address).await.unwrap());
    }
    sleep(Duration::from_millis(100)).await;
    let (ca, token) = (authority.text("ca.pem"), authority.text("token"));
    let settings = [
        ("SHIPPER_CA_FILE", ca.as_str()),
        ("SHIPPER_TOKEN_FILE", token.as_str()),
    ];
    let driver = driver("host-1", &site.endpoint(), &settings).await;
    let began = tokio::time::Instant::now();
    wait("a connection", &driver.log(), async || {
        connections(&driver) > 0
    })
    .await;
    let took = began.elapsed();
    eprintln!(
        "{} silent peers: a host connected within {took:?}",
        silent.len()
    );
    // Silent peers are dropped after 10 s; a host must not wait for that.
    assert!(took < Duration::from_secs(5), "{}", driver.log());
}
